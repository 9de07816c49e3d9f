import MobileCLIPAppCore
import MobileCLIPCore
import SwiftUI
import UniformTypeIdentifiers

/// Which bundle is used and where it runs.
struct SettingsView: View {
    @Environment(AppModel.self) private var model
    @State private var isPicking = false

    var body: some View {
        @Bindable var bundles = model.bundles
        NavigationStack {
            List {
                Section("Bundle") {
                    ForEach(bundles.names, id: \.self) { name in
                        Button { bundles.select(name) } label: { Label(name, systemImage: name == bundles.selected ? "checkmark.circle.fill" : "circle") }
                    }
                    .onDelete { places in places.map { bundles.names[$0] }.forEach { model.remove($0) } }
                    if bundles.isAdding { ProgressView("Copying and checking…") } else { Button("Add a folder or zip…") { isPicking = true } }
                    if !bundles.remark.isEmpty { Text(bundles.remark).foregroundStyle(.red) }
                }
                Section("Runs on") {
                    Picker("Compute unit", selection: $bundles.unit) { ForEach(ComputeUnit.allCases) { Text($0.title).tag($0) } }
                }
                StageSection(stage: bundles.stage)
            }
            .navigationTitle("Settings")
            .fileImporter(isPresented: $isPicking, allowedContentTypes: [.folder, .zip]) { result in
                if case .success(let url) = result { Task { await model.add(url) } }
            }
        }
    }
}

private struct StageSection: View {
    let stage: BundleChoice.Stage

    var body: some View {
        Section("Does this phone reproduce it?") {
            switch stage {
            case .ready(let ready):
                ForEach(ready.reproductions, id: \.tower) { found in
                    LabeledContent("\(found.tower.rawValue) tower: smallest cosine \(String(format: "%.6f", found.cosine))", value: found.passed ? "yes" : "no, \(found.bar) is needed")
                }
                LabeledContent("Model", value: ready.bundle.manifest.model.name)
                LabeledContent("Precision", value: ready.bundle.manifest.options.precision)
                if !ready.bundle.manifest.model.trained { Text("Untrained weights: predictions mean nothing.").foregroundStyle(.orange) }
            case .loading(let text): ProgressView(text)
            case .failed(let reason): Text(reason).foregroundStyle(.red)
            case .empty: Text("No bundle yet.")
            }
        }
    }
}
