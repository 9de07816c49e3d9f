import MobileCLIPAppCore
import MobileCLIPCore
import Observation
import SwiftUI

/// What the camera sees, among labels that the user writes.
struct ClassifyView: View {
    @Environment(AppModel.self) private var model
    @Environment(\.scenePhase) private var phase
    @State private var classifier = Classifier()
    @State private var isEditing = false

    var body: some View {
        NavigationStack {
            content
                .navigationTitle("Camera")
                .toolbar { Button("Labels", systemImage: "pencil") { isEditing = true } }
                .sheet(isPresented: $isEditing) { PromptEditor(text: $classifier.text) }
        }
    }

    @ViewBuilder private var content: some View {
        if let ready = model.bundles.ready {
            VStack(spacing: 0) {
                ReproductionBanner(ready: ready)
                if classifier.problem.isEmpty {
                    CameraPreview(camera: classifier.camera).accessibilityLabel("What the camera sees")
                } else {
                    ContentUnavailableView("No pictures", systemImage: "camera.badge.ellipsis", description: Text(classifier.problem))
                }
                PredictionList(rows: classifier.rows)
            }
            .task(id: Job(name: ready.name, unit: model.bundles.unit, text: classifier.text, isActive: phase == .active)) {
                if phase == .active { await classifier.run(ready.service) }
            }
        } else {
            BundleStatus(stage: model.bundles.stage)
        }
    }

    private struct Job: Equatable {
        let name: String
        let unit: ComputeUnit
        let text: String
        let isActive: Bool
    }
}

@MainActor
@Observable
final class Classifier {
    struct Row: Identifiable {
        let id: Int
        let label: String
        let probability: Double
    }

    private static let top = 5

    private(set) var rows: [Row] = []
    private(set) var problem = ""
    let camera = Camera()

    var text = UserDefaults.standard.string(forKey: "prompts") ?? PromptList.example {
        didSet { UserDefaults.standard.set(text, forKey: "prompts") }
    }

    /// Classify until the task is cancelled.
    func run(_ service: EncoderService) async {
        rows = []
        problem = ""
        do {
            let prompts = PromptList(parsing: text)
            guard !prompts.labels.isEmpty else { throw MobileCLIPError("there are no labels; write one a line") }
            let classes = try await service.classes(of: prompts)
            let (run, pictures) = try await camera.start()
            defer { camera.stop(run) }
            for await picture in pictures {
                let found = try await service.classify(picture, classes: classes, top: Classifier.top)
                rows = found.map { Row(id: $0.label, label: prompts.labels[$0.label], probability: $0.probability) }
                try Task.checkCancellation()
            }
        } catch is CancellationError {
            return
        } catch {
            problem = explanation(of: error)
        }
    }
}

private struct PredictionList: View {
    let rows: [Classifier.Row]

    var body: some View {
        VStack(alignment: .leading, spacing: 6) {
            ForEach(rows) { row in
                HStack {
                    Text(row.label).lineLimit(1)
                    Spacer()
                    Text(row.probability, format: .percent.precision(.fractionLength(0))).monospacedDigit()
                }
                ProgressView(value: row.probability)
            }
        }
        .padding()
    }
}

private struct PromptEditor: View {
    @Binding var text: String
    @Environment(\.dismiss) private var dismiss
    @State private var draft = ""

    var body: some View {
        NavigationStack {
            VStack(alignment: .leading) {
                Text("A label a line. A line with {} is a template for all of them.").font(.footnote).foregroundStyle(.secondary)
                TextEditor(text: $draft).accessibilityLabel("Labels")
                Text(PromptList(parsing: draft).remark).font(.footnote).foregroundStyle(.secondary)
            }
            .padding()
            .navigationTitle("Labels")
            .toolbar {
                Button("Done") {
                    text = draft
                    dismiss()
                }
            }
            .onAppear { draft = text }
        }
    }
}
