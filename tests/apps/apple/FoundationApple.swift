// What Foundation has on Apple's systems only. Declarations for type checking; see README.md.
@_exported import Foundation

public func declared() -> Never { fatalError("a declaration only") }

public typealias CFString = String
public typealias CFData = Data
public typealias CFDictionary = [AnyHashable: Any]

public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result { declared() }

extension ProcessInfo {
    public enum ThermalState: Int, Sendable { case nominal, fair, serious, critical }
    public var thermalState: ThermalState { declared() }
    public var isLowPowerModeEnabled: Bool { declared() }
}

public struct NSKeyValueObservingOptions: OptionSet, Sendable {
    public let rawValue: UInt
    public init(rawValue: UInt) { self.rawValue = rawValue }
}
public struct NSKeyValueObservedChange<Value> {}
public final class NSKeyValueObservation: NSObject {}
public protocol _KeyValueCodingAndObserving {}
extension NSObject: _KeyValueCodingAndObserving {}
extension _KeyValueCodingAndObserving {
    public func observe<Value>(
        _ keyPath: KeyPath<Self, Value>, options: NSKeyValueObservingOptions = [], changeHandler: @escaping (Self, NSKeyValueObservedChange<Value>) -> Void
    ) -> NSKeyValueObservation { declared() }
}

extension NSSortDescriptor { public convenience init(key: String?, ascending: Bool) { declared() } }

extension URL {
    public static var documentsDirectory: URL { declared() }
    public static var cachesDirectory: URL { declared() }
    public static var applicationSupportDirectory: URL { declared() }
    public func startAccessingSecurityScopedResource() -> Bool { declared() }
    public func stopAccessingSecurityScopedResource() { declared() }
}
