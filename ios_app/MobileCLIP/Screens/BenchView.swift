import Charts
import MobileCLIPAppCore
import MobileCLIPCore
import MobileCLIPCoreML
import Observation
import SwiftUI

/// How fast the bundle is on this phone.
struct BenchView: View {
    @Environment(AppModel.self) private var model

    private var bench: BenchModel { model.bench }

    var body: some View {
        NavigationStack {
            content.navigationTitle("Benchmark")
        }
    }

    @ViewBuilder private var content: some View {
        if let ready = model.bundles.ready {
            List {
                Section {
                    if bench.isRunning {
                        ProgressView(bench.progress)
                        Button("Stop") { model.phone.stop() }
                    } else {
                        Button("Measure \(ready.name) on \(model.bundles.unit.title)") { Task { await bench.run(ready.bundle, model.bundles.unit, model.phone) } }
                    }
                    if !bench.problem.isEmpty { Text(bench.problem).foregroundStyle(.red) }
                } footer: {
                    Text("Leave the app in front and the phone alone. Figures for a table come from a computer: mobileclip bench --device iphone")
                }
                ForEach(bench.outcomes, id: \.tower) { OutcomeSection(outcome: $0) }
            }
        } else {
            BundleStatus(stage: model.bundles.stage)
        }
    }
}

@MainActor
@Observable
final class BenchModel {
    private(set) var outcomes: [LocalBench.Outcome] = []
    private(set) var progress = ""
    private(set) var problem = ""
    private(set) var isRunning = false

    func run(_ bundle: ModelBundle, _ unit: ComputeUnit, _ phone: PhoneState) async {
        guard !isRunning else { return }
        isRunning = true
        (outcomes, problem, progress) = ([], "", "starting")
        phone.stop(false)
        defer { isRunning = false }
        let (told, teller) = AsyncStream.makeStream(of: String.self, bufferingPolicy: .bufferingNewest(1))
        let listening = Task { for await text in told { progress = text } }
        defer {
            teller.finish()
            listening.cancel()
        }
        do {
            let local = try LocalBench(bundle: bundle, provider: unit.rawValue)
            outcomes = try await PhoneBenchHost.onThread { try local.run(on: PhoneBenchHost(phone)) { teller.yield($0) } }
        } catch {
            problem = explanation(of: error)
        }
    }
}

private struct OutcomeSection: View {
    let outcome: LocalBench.Outcome

    var body: some View {
        Section(outcome.tower == .image ? "Image tower" : "Text tower") {
            if let summary = outcome.summary {
                Chart(summary.points) { point in
                    PointMark(x: .value("Second", point.seconds), y: .value("Latency in ms", point.ms))
                }
                .chartYAxisLabel("ms")
                .chartXAxisLabel("s")
                .frame(height: 160)
                LabeledContent("Median", value: text(summary.p50))
                LabeledContent("90th percentile", value: text(summary.p90))
                LabeledContent("Load", value: text(summary.loadMs))
                LabeledContent("Runs", value: "\(summary.n)")
                ForEach(summary.warnings, id: \.self) { Text("Doubtful: \($0)").foregroundStyle(.orange) }
            }
            if let cosine = outcome.cosine { LabeledContent("Smallest cosine", value: String(format: "%.5f", cosine)) }
            ForEach(outcome.placement.sorted { $0.key < $1.key }, id: \.key) { LabeledContent("Operators on \($0.key)", value: "\($0.value)") }
            if let error = outcome.error { Text(error).foregroundStyle(.red) }
        }
    }

    private func text(_ ms: Double) -> String { String(format: "%.2f ms", ms) }
}
