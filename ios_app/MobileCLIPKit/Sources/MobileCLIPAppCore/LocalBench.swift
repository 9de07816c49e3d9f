import Foundation
import MobileCLIPCore

/// A measurement on the benchmark screen: the phone's own look at a bundle, by the runner and with the minima that `mobileclip bench` has.
public struct LocalBench: Sendable {
    private static let minSamples = 100
    private static let minSeconds = 10.0
    private static let warmupRuns = 10
    private static let keepOf = 20
    private static let blockSeconds = 0.5
    private static let blockSamples = 10
    private static let coolSeconds = 60.0

    public struct Outcome: Sendable {
        public let tower: Tower
        public let summary: BenchSummary?
        /// Smallest cosine of the timed outputs to the exported model's; nil where none was kept.
        public let cosine: Double?
        public let placement: [String: Int]
        /// Why there is no result, or only half of one.
        public let error: String?
    }

    private let bundle: ModelBundle
    private let name: String
    private let golden: SafeTensors
    private let plan: BenchPlan

    /// - Throws: `MobileCLIPError` if the bundle has nothing to measure
    public init(bundle: ModelBundle, target: Target = .coreml, provider: String) throws {
        self.bundle = bundle
        name = bundle.folder.lastPathComponent
        golden = try SafeTensors(contentsOf: bundle.url(bundle.manifest.golden.path))
        let (name, golden) = (name, golden)
        let measurements = try bundle.manifest.artifacts.filter { $0.target == target }.map { artifact in
            let rows = try golden.tensor("\(artifact.tower.rawValue).input").shape.first ?? 0
            let wanted = try golden.tensor("\(artifact.tower.rawValue).embedding").floats()
            guard wanted.count % bundle.manifest.embedDim == 0, wanted.count / bundle.manifest.embedDim == rows else {
                throw MobileCLIPError("the golden inputs do not fit the bundle; export it again")
            }
            let request = BenchRequest(
                bundle: name, artifact: artifact, rows: rows, provider: provider, warmupRuns: LocalBench.warmupRuns, minSamples: LocalBench.minSamples,
                minSeconds: LocalBench.minSeconds, keep: [0], keepOf: LocalBench.keepOf)
            return PlannedMeasurement(request: request, bundle: name, inputs: "\(artifact.tower.rawValue).input")
        }
        let forwards = Array(measurements.indices)
        plan = try BenchPlan(
            measurements: measurements, orders: [forwards, forwards.reversed()], blockSeconds: LocalBench.blockSeconds,
            blockSamples: LocalBench.blockSamples, coolSeconds: LocalBench.coolSeconds)
    }

    /// Measure; keeps the thread busy.
    public func run(on host: any BenchHost, tell: @escaping (String) -> Void) throws -> [Outcome] {
        var outcomes: [Outcome] = []
        let runner = BenchRunner(
            plan: plan, host: host,
            open: { planned in (bundle.folder, try golden.tensor(planned.inputs).data) }, tell: tell,
            answer: { number, answer in outcomes.append(try outcome(plan.measurements[number].request, answer)) })
        try runner.run()
        return outcomes.sorted { $0.tower.rawValue < $1.tower.rawValue }
    }

    private func outcome(_ request: BenchRequest, _ answer: BenchAnswer) throws -> Outcome {
        let samples = answer.samples
        let width = bundle.manifest.embedDim
        let wanted = try golden.tensor("\(request.tower.rawValue).embedding").floats()
        var cosines: [Double] = []
        for kept in samples?.kept ?? [] {
            let embedding = kept.embedding
            for row in 0..<embedding.count / width {
                let input = (kept.firstInput + row) % request.rows
                let expected = ZeroShot.normalized(Array(wanted[input * width..<(input + 1) * width]))
                cosines.append(ZeroShot.cosine(Array(embedding[row * width..<(row + 1) * width]), expected))
            }
        }
        return Outcome(
            tower: request.tower, summary: samples.flatMap { BenchSummary($0) }, cosine: cosines.min(), placement: samples?.placement ?? [:], error: answer.error)
    }
}

/// What the benchmark screen shows of a measurement. Results for a table come from the host, which has the raw samples.
public struct BenchSummary: Equatable, Sendable {
    public struct Point: Equatable, Sendable, Identifiable {
        public let id: Int
        public let seconds: Double
        public let ms: Double
    }

    private static let maxPoints = 300

    public let n: Int
    public let p50: Double
    public let p90: Double
    public let loadMs: Double
    /// In the order in which they were taken; of many, the slowest of each group, so that no spike disappears.
    public let points: [Point]
    /// What makes the figures doubtful; empty if nothing.
    public let warnings: [String]

    /// Nil without timed runs.
    public init?(_ samples: BenchSamples) {
        let ms = samples.latencyMs
        guard !ms.isEmpty else { return nil }
        n = ms.count
        p50 = BenchSummary.percentile(50, of: ms)
        p90 = BenchSummary.percentile(90, of: ms)
        loadMs = samples.loadMs
        let group = (ms.count + BenchSummary.maxPoints - 1) / BenchSummary.maxPoints
        points = stride(from: 0, to: ms.count, by: group).map { first in
            let slowest = (first..<min(first + group, ms.count)).max { ms[$0] < ms[$1] } ?? first
            return Point(id: slowest, seconds: slowest < samples.startMs.count ? samples.startMs[slowest] / 1000 : 0, ms: ms[slowest])
        }
        var warnings: [String] = []
        if samples.states.contains(where: { ![.nominal, .unknown].contains($0.thermal) }) { warnings.append("the phone was warm") }
        if samples.states.contains(where: { $0.lowPower == true }) { warnings.append("low-power mode was on") }
        if samples.states.contains(where: { $0.foreground == false }) { warnings.append("the app was in the background") }
        if samples.device.emulated { warnings.append("this is a simulator") }
        self.warnings = warnings
    }

    /// By linear interpolation, as the host has it.
    static func percentile(_ percent: Double, of values: [Double]) -> Double {
        let sorted = values.sorted()
        guard let last = sorted.last else { return .nan }
        let place = percent / 100 * Double(sorted.count - 1)
        let below = Int(place)
        let above = below + 1 < sorted.count ? sorted[below + 1] : last
        return sorted[below] + (place - Double(below)) * (above - sorted[below])
    }
}
