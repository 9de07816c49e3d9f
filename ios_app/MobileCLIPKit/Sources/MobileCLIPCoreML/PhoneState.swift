#if canImport(UIKit)
import Darwin
import Foundation
import MobileCLIPCore
import UIKit

/// What the phone is and how it feels: temperature, battery, whether the app is in front. Looked at from any thread but the main one.
public final class PhoneState: @unchecked Sendable { // what changes is behind the lock
    public let device: BenchDevice
    private let lock = NSLock()
    private var isInFront = false
    private var wasInFront = false
    private var stopped = false
    private var measurements = 0

    @MainActor
    public init() {
        let phone = UIDevice.current
        phone.isBatteryMonitoringEnabled = true
        #if targetEnvironment(simulator)
        let (model, emulated) = (ProcessInfo.processInfo.environment["SIMULATOR_MODEL_IDENTIFIER"] ?? "simulator", true)
        #else
        let (model, emulated) = (PhoneState.model(), false)
        #endif
        let unit = phone.identifierForVendor.map { String(Hash.sha256(Data($0.uuidString.utf8)).prefix(6)) } ?? ""
        device = BenchDevice(
            name: phone.name, model: model, unit: unit, os: "\(phone.systemName) \(phone.systemVersion)", architecture: "arm64",
            logicalCores: ProcessInfo.processInfo.processorCount, memoryBytes: Int(ProcessInfo.processInfo.physicalMemory), emulated: emulated)
        let center = NotificationCenter.default
        _ = center.addObserver(forName: UIApplication.willResignActiveNotification, object: nil, queue: nil) { [weak self] _ in self?.set(inFront: false) }
        _ = center.addObserver(forName: UIApplication.didBecomeActiveNotification, object: nil, queue: nil) { [weak self] _ in self?.set(inFront: true) }
    }

    private func set(inFront: Bool) {
        lock.withLock {
            isInFront = inFront
            if !inFront { wasInFront = false }
        }
    }

    /// Ask a measurement to end.
    public func stop(_ wanted: Bool = true) { lock.withLock { stopped = wanted } }

    public var isStopped: Bool { lock.withLock { stopped } }

    /// A measurement begins or ends.
    func measure(_ begins: Bool) { lock.withLock { measurements += begins ? 1 : -1 } }

    /// Why heavy work shall wait; nil where it need not.
    public var reasonToWait: String? {
        if lock.withLock({ measurements > 0 }) { return "a measurement is running" }
        switch ProcessInfo.processInfo.thermalState {
        case .serious, .critical: return "the phone is hot"
        default: return nil
        }
    }

    func now(_ moment: String) -> BenchState {
        let front = lock.withLock {
            defer { wasInFront = isInFront }
            return wasInFront
        }
        let (level, state) = DispatchQueue.main.sync { MainActor.assumeIsolated { (UIDevice.current.batteryLevel, UIDevice.current.batteryState) } }
        return BenchState(
            moment: moment, thermal: PhoneState.thermal(), batteryPercent: level < 0 ? nil : Double(100 * level).rounded(),
            charging: state == .unknown ? nil : state != .unplugged, lowPower: ProcessInfo.processInfo.isLowPowerModeEnabled, foreground: front)
    }

    private static func thermal() -> Thermal {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: .nominal
        case .fair: .fair
        case .serious: .serious
        case .critical: .critical
        @unknown default: .unknown
        }
    }

    /// `iPhone13,4` for example.
    private static func model() -> String {
        var about = utsname()
        guard uname(&about) == 0 else { return "iPhone" }
        return withUnsafeBytes(of: &about.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }
}

enum Memory {
    /// The most that the system has charged this process with.
    static func peakBytes() -> Int? {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let size = Int(count)
        let result = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: size) { task_info(task_self_trap(), task_flavor_t(TASK_VM_INFO), $0, &count) }
        }
        return result == KERN_SUCCESS && info.ledger_phys_footprint_peak > 0 ? Int(info.ledger_phys_footprint_peak) : nil
    }
}
#endif
