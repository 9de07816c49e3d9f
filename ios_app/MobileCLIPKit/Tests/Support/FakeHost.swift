import Foundation
import MobileCLIPCore

/// A phone by script: its clock goes on by what each run takes, and by a microsecond whenever somebody looks at it.
public final class FakeHost: BenchHost {
    public var device = BenchDevice(name: "fake", model: "iPhone0,0", os: "iOS 17")
    public var thermals: [Thermal] = [.nominal]
    public var foreground = true
    public var loadsFail: Set<Tower> = []
    /// What a run takes, and what it throws; by number of the run.
    public var run: (BenchRequest, Int) throws -> Double = { _, _ in 5 }
    public var told: [OperatorRuns] = []
    public var stopped = false
    public private(set) var loads: [String] = []
    public private(set) var slept = 0.0
    private var runs: [Tower: Int] = [:]
    private var now: UInt64 = 1_000_000_000

    public init() {}

    public func state(_ moment: String) -> BenchState {
        let thermal = thermals.count > 1 ? thermals.removeFirst() : thermals[0]
        return BenchState(moment: moment, thermal: thermal, batteryPercent: 80, charging: false, lowPower: false, foreground: foreground)
    }

    public func load(_ folder: URL, _ request: BenchRequest) throws -> any Session {
        now += 50_000_000
        loads.append("\(folder.lastPathComponent)/\(request.artifact)")
        if loadsFail.contains(request.tower) { throw MobileCLIPError("CoreML refuses it\nfor a reason") }
        return FakeSession(request) { [unowned self] in
            let number = runs[request.tower, default: 0]
            runs[request.tower] = number + 1
            now += UInt64(try run(request, number) * 1e6)
        }
    }

    public func operators(_ folder: URL, _ request: BenchRequest) throws -> [OperatorRuns] { told }

    public func nanoseconds() -> UInt64 {
        now += 1000
        return now
    }

    public func sleep(seconds: Double) {
        slept += seconds
        now += UInt64(seconds * 1e9)
    }

    public func shallStop() -> Bool { stopped }

    public func peakMemoryBytes() -> Int? { 1 << 20 }
}
