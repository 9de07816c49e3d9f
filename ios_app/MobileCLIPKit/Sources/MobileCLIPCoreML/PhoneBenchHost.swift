#if canImport(CoreML) && canImport(UIKit)
import Foundation
import MobileCLIPCore

/// The benchmark's view of an iPhone. It waits for what is asynchronous, so it needs a thread of its own: `PhoneBenchHost.onThread`.
public final class PhoneBenchHost: BenchHost {
    public let device: BenchDevice
    private let phone: PhoneState
    private var compiled: [String: URL] = [:]

    public init(_ phone: PhoneState) {
        self.phone = phone
        device = phone.device
        phone.measure(true)
    }

    deinit {
        phone.measure(false)
        for folder in compiled.values { try? FileManager.default.removeItem(at: folder) }
    }

    public func state(_ moment: String) -> BenchState { phone.now(moment) }

    /// The first load of a package compiles it; later ones find it compiled.
    public func load(_ folder: URL, _ request: BenchRequest) throws -> any Session {
        let model = try compiledModel(folder, request)
        return try CoreMLSession(compiled: model, input: request.input, output: request.output, units: request.provider)
    }

    public func operators(_ folder: URL, _ request: BenchRequest) throws -> [OperatorRuns] {
        guard #available(iOS 17.4, macOS 14.4, *) else { return [] }
        let model = try compiledModel(folder, request)
        return try Blocking.wait { try await ComputePlan.operators(compiled: model, units: request.provider) }
    }

    public func nanoseconds() -> UInt64 { DispatchTime.now().uptimeNanoseconds }

    public func sleep(seconds: Double) { Thread.sleep(forTimeInterval: seconds) }

    public func shallStop() -> Bool { phone.isStopped }

    public func peakMemoryBytes() -> Int? { Memory.peakBytes() }

    private func compiledModel(_ folder: URL, _ request: BenchRequest) throws -> URL {
        let package = folder.appendingPathComponent(request.artifact)
        if let found = compiled[package.path] { return found }
        let made = try Blocking.wait { try await CompiledModels.compiled(package) }
        compiled[package.path] = made
        return made
    }

    /// Do some work on a new thread of high priority.
    public static func onThread<T: Sendable>(_ work: @escaping @Sendable () throws -> T) async throws -> T {
        try await withCheckedThrowingContinuation { continuation in
            let thread = Thread { continuation.resume(with: Result(catching: work)) }
            thread.qualityOfService = .userInitiated
            thread.stackSize = 8 << 20 // CoreML's compiler needs more than a thread has
            thread.start()
        }
    }
}

private enum Blocking {
    private final class Box<T: Sendable>: @unchecked Sendable { // written before the signal, read after it
        var result: Result<T, any Error>?
    }

    /// Wait on this thread, which must not be one of Swift's pool.
    static func wait<T: Sendable>(_ work: @escaping @Sendable () async throws -> T) throws -> T {
        let box = Box<T>()
        let done = DispatchSemaphore(value: 0)
        Task.detached(priority: .userInitiated) {
            do {
                box.result = .success(try await work())
            } catch {
                box.result = .failure(error)
            }
            done.signal()
        }
        done.wait()
        guard let result = box.result else { throw MobileCLIPError("CoreML has not answered; start again") }
        return try result.get()
    }
}
#endif
