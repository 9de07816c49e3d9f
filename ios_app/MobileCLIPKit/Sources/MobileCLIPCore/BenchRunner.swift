import Foundation

/// A loaded tower.
public protocol Session: AnyObject {
    /// What runs it, with its version.
    var engine: String { get }

    /// One run: an input of the artifact's type and shape, little-endian, to an embedding of its shape.
    func run(_ input: Data) throws -> [Float]
}

/// What the benchmark needs of the phone that it runs on.
public protocol BenchHost: AnyObject {
    var device: BenchDevice { get }

    func state(_ moment: String) -> BenchState

    /// Load an artifact of a folder.
    func load(_ folder: URL, _ request: BenchRequest) throws -> any Session

    /// What each operator costs, see `BenchRequest.perOp`; empty where the runtime does not tell.
    func operators(_ folder: URL, _ request: BenchRequest) throws -> [OperatorRuns]

    /// A clock that only goes forward, in nanoseconds.
    func nanoseconds() -> UInt64

    func sleep(seconds: Double)

    /// Whether a person wants it to end; what was measured so far is kept.
    func shallStop() -> Bool

    /// Largest memory of this process so far.
    func peakMemoryBytes() -> Int?
}

/// Does a plan: loads all, lets the device cool down, warms all up, then goes round and round; gives an answer for each measurement.
/// It keeps its thread busy, which should be one of its own.
public final class BenchRunner {
    private final class Measurement {
        let number: Int
        let request: BenchRequest
        let bundle: URL
        let inputs: Data
        var session: (any Session)?
        var samples: BenchSamples
        var next = 0
        var begin: UInt64?

        init(_ number: Int, _ request: BenchRequest, bundle: URL, inputs: Data, device: BenchDevice) {
            self.number = number
            self.request = request
            self.bundle = bundle
            self.inputs = inputs
            samples = BenchSamples(engine: "unknown", provider: request.provider, device: device)
        }

        var isEnough: Bool {
            samples.latencyMs.count >= request.minSamples && samples.latencyMs.reduce(0, +) >= 1000 * request.minSeconds
        }
    }

    private static let refreshNanoseconds: UInt64 = 20_000_000
    private static let stateNanoseconds: UInt64 = 30_000_000_000
    private static let silenceNanoseconds: UInt64 = 30_000_000_000
    private static let coolStepSeconds = 5.0
    private static let shortestMs = 1e-4
    private static let maxErrorCharacters = 500
    private static let widths = ["float32": 4, "int32": 4, "uint8": 1]

    private let plan: BenchPlan
    private let host: any BenchHost
    private let open: (PlannedMeasurement) throws -> (bundle: URL, inputs: Data)
    private let write: (String) -> Void
    private var told: UInt64 = 0
    private let answer: (Int, BenchAnswer) throws -> Void

    /// - Parameters:
    ///   - open: a measurement's bundle and its inputs, one behind the other
    ///   - tell: told what is being done, at least every half a minute while models run: a host stops an app that it does not hear of
    ///   - answer: given what came of each measurement as soon as it ends; what it throws ends the run
    public init(
        plan: BenchPlan, host: any BenchHost, open: @escaping (PlannedMeasurement) throws -> (bundle: URL, inputs: Data),
        tell: @escaping (String) -> Void, answer: @escaping (Int, BenchAnswer) throws -> Void
    ) {
        self.plan = plan
        self.host = host
        self.open = open
        write = tell
        self.answer = answer
    }

    public func run() throws {
        var open: [Measurement] = []
        for (number, planned) in plan.measurements.enumerated() {
            try attempt(number, nil) { open.append(try prepared(number, planned)) }
        }
        coolDown()
        open = try open.filter { m in
            try attempt(m.number, m) { for _ in 0..<m.request.warmupRuns { m.samples.warmupMs.append(try once(m).ms) } }
        }
        var round = 0
        while !open.isEmpty {
            for number in plan.orders[round % plan.orders.count] {
                guard let m = open.first(where: { $0.number == number }) else { continue }
                let went = try attempt(number, m) {
                    try turn(m)
                    if m.isEnough { try finish(m) }
                }
                if !went || m.isEnough { open.removeAll { $0.number == number } }
            }
            round += 1
        }
    }

    private func prepared(_ number: Int, _ planned: PlannedMeasurement) throws -> Measurement {
        let request = planned.request
        let (bundle, inputs) = try open(planned)
        guard let width = BenchRunner.widths[request.input.dtype] else { throw MobileCLIPError("inputs of \(request.input.dtype) are not known; update the app") }
        guard inputs.count == request.rows * width * request.input.shape.dropFirst().reduce(1, *) else {
            throw MobileCLIPError("the inputs have not the size of \(request.rows) rows; start again")
        }
        let m = Measurement(number, request, bundle: bundle, inputs: inputs, device: host.device)
        tell("loading \(request.label)")
        let start = host.nanoseconds()
        let session = try host.load(m.bundle, m.request)
        m.samples.loadMs = milliseconds(since: start)
        m.session = session
        m.samples.engine = session.engine
        m.samples.firstRunMs = try once(m).ms
        return m
    }

    private func turn(_ m: Measurement) throws {
        let burst = m.request.mode == "burst"
        if m.samples.latencyMs.isEmpty {
            tell("timing \(m.request.label)")
            if !burst { coolDown() }
            m.samples.states.append(host.state("before"))
        }
        let refreshUntil = host.nanoseconds() + BenchRunner.refreshNanoseconds // others may have taken the caches
        repeat { _ = try once(m) } while host.nanoseconds() < refreshUntil
        var looked = host.nanoseconds()
        var timed = 0
        var total = 0.0
        m.samples.blockSamples.append(0)
        while burst ? timed < plan.blockSamples || total < 1000 * plan.blockSeconds : !m.isEnough {
            let first = m.next
            let start = host.nanoseconds()
            let begin = m.begin ?? start
            m.begin = begin
            let (ms, output) = try once(m)
            let sample = m.samples.latencyMs.count
            m.samples.startMs.append(Double(start - begin) / 1e6)
            m.samples.latencyMs.append(ms)
            timed += 1
            m.samples.blockSamples[m.samples.blockSamples.count - 1] = timed
            total += ms
            if m.request.keeps(sample) { m.samples.kept.append(KeptOutput(sample: sample, firstInput: first, embedding: output)) }
            if host.nanoseconds() - looked > BenchRunner.stateNanoseconds {
                m.samples.states.append(host.state("during"))
                looked = host.nanoseconds()
            }
        }
    }

    private func finish(_ m: Measurement) throws {
        m.samples.states.append(host.state("after"))
        m.samples.peakMemoryBytes = host.peakMemoryBytes()
        m.session = nil
        let start = host.nanoseconds()
        m.session = try host.load(m.bundle, m.request)
        m.samples.warmLoadMs = milliseconds(since: start)
        m.session = nil
        if let found = try? host.operators(m.bundle, m.request) { // nothing depends on it
            for one in found { m.samples.placement[one.where, default: 0] += 1 }
            if m.request.perOp { m.samples.operators = found }
        }
        try answer(m.number, BenchAnswer(samples: m.samples, error: nil))
    }

    /// Do a step of a measurement; false if it failed, with its answer given.
    @discardableResult
    private func attempt(_ number: Int, _ m: Measurement?, _ step: () throws -> Void) throws -> Bool {
        do {
            try step()
            return true
        } catch {
            let whole = (error as? MobileCLIPError)?.description ?? error.localizedDescription
            let text = String(whole.split(whereSeparator: \.isNewline).joined(separator: " ").prefix(BenchRunner.maxErrorCharacters))
            var samples: BenchSamples?
            if let m, !m.samples.latencyMs.isEmpty {
                samples = m.samples
                samples?.endedEarly = text
                samples?.blockSamples.removeAll { $0 == 0 }
            }
            m?.session = nil
            try answer(number, BenchAnswer(samples: samples, error: text))
            return false
        }
    }

    /// One run on the next input.
    private func once(_ m: Measurement) throws -> (ms: Double, output: [Float]) {
        guard !host.shallStop() else { throw MobileCLIPError("it was stopped") }
        guard let session = m.session else { throw MobileCLIPError("no model is loaded; start again") }
        let batch = m.request.input.shape.first ?? 1
        let rowBytes = m.inputs.count / m.request.rows
        var input = Data(capacity: batch * rowBytes)
        for i in 0..<batch {
            let row = (m.next + i) % m.request.rows
            input += m.inputs.dropFirst(row * rowBytes).prefix(rowBytes)
        }
        m.next = m.next + batch >= m.request.rows ? 0 : m.next + batch
        if host.nanoseconds() - told > BenchRunner.silenceNanoseconds { tell("running \(m.request.label)") }
        let start = host.nanoseconds()
        let output = try session.run(input)
        return (max(milliseconds(since: start), BenchRunner.shortestMs), output)
    }

    private func tell(_ text: String) {
        told = host.nanoseconds()
        write(text)
    }

    private func coolDown() {
        let until = host.nanoseconds() + UInt64(max(plan.coolSeconds, 0) * 1e9)
        while ![.nominal, .unknown].contains(host.state("before").thermal), host.nanoseconds() < until, !host.shallStop() {
            tell("the device is warm; it may cool down")
            host.sleep(seconds: BenchRunner.coolStepSeconds)
        }
    }

    private func milliseconds(since start: UInt64) -> Double { Double(host.nanoseconds() - start) / 1e6 }
}
