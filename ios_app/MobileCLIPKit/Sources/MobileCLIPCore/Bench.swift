import Foundation

/// One measurement: a tower of a bundle in one runtime; see `conformance/bench_request.schema.json`.
public struct BenchRequest: Codable, Equatable, Sendable {
    public let bundle: String
    public let target: Target
    public let tower: Tower
    public let artifact: String
    public let input: TensorInfo
    public let output: TensorInfo
    public let rows: Int
    public let provider: String
    public let threads: Int
    public let mode: String
    public let warmupRuns: Int
    public let minSamples: Int
    public let minSeconds: Double
    public let keep: [Int]
    public let keepOf: Int
    public let perOp: Bool

    /// Whether the output of a timed run is kept for the host to check.
    public func keeps(_ sample: Int) -> Bool {
        sample % keepOf == keep[sample / keepOf % keep.count]
    }
}

public struct PlannedMeasurement: Codable, Equatable, Sendable {
    public let request: BenchRequest
    public let bundle: String
    public let inputs: String
}

/// All measurements of a call; see `conformance/bench_plan.schema.json`.
public struct BenchPlan: Codable, Equatable, Sendable {
    public static let schemaVersion = 3

    public let schemaVersion: Int
    public let measurements: [PlannedMeasurement]
    public let orders: [[Int]]
    public let blockSeconds: Double
    public let blockSamples: Int
    public let coolSeconds: Double

    /// - Throws: `MobileCLIPError` if it is no plan, or not of this version.
    public init(parsing data: Data) throws {
        do {
            self = try Coders.decoder().decode(BenchPlan.self, from: data)
        } catch {
            throw MobileCLIPError("the plan cannot be read (\(Coders.reason(error))); use the same version of toolkit and app")
        }
        guard schemaVersion == BenchPlan.schemaVersion else {
            throw MobileCLIPError("the plan has version \(schemaVersion), this app knows \(BenchPlan.schemaVersion); use the same version of toolkit and app")
        }
        guard !orders.isEmpty, orders.allSatisfy({ $0.sorted() == Array(measurements.indices) }),
              measurements.allSatisfy({ !$0.request.keep.isEmpty && $0.request.keepOf > 0 && $0.request.rows > 0 && $0.request.input.shape.allSatisfy { $0 > 0 } })
        else { throw MobileCLIPError("the plan does not fit together; use the same version of toolkit and app") }
    }
}

public struct BenchDevice: Codable, Equatable, Sendable {
    public var name: String
    public var model: String
    public var unit: String
    public var soc: String
    public var os: String
    public var architecture: String
    public var logicalCores: Int?
    public var memoryBytes: Int?
    public var emulated: Bool

    public init(name: String, model: String, unit: String = "", soc: String = "", os: String, architecture: String = "", logicalCores: Int? = nil, memoryBytes: Int? = nil, emulated: Bool = false) {
        self.name = name
        self.model = model
        self.unit = unit
        self.soc = soc
        self.os = os
        self.architecture = architecture
        self.logicalCores = logicalCores
        self.memoryBytes = memoryBytes
        self.emulated = emulated
    }
}

public enum Thermal: String, Codable, Sendable { case nominal, fair, serious, critical, unknown }

public struct BenchState: Codable, Equatable, Sendable {
    public var moment: String
    public var thermal: Thermal
    public var batteryPercent: Double?
    public var charging: Bool?
    public var lowPower: Bool?
    public var foreground: Bool?

    public init(moment: String, thermal: Thermal = .unknown, batteryPercent: Double? = nil, charging: Bool? = nil, lowPower: Bool? = nil, foreground: Bool? = nil) {
        self.moment = moment
        self.thermal = thermal
        self.batteryPercent = batteryPercent
        self.charging = charging
        self.lowPower = lowPower
        self.foreground = foreground
    }
}

public struct KeptOutput: Codable, Equatable, Sendable {
    public let sample: Int
    public let firstInput: Int
    public let values: String
}

/// What one operator costs; see `conformance/device_samples.schema.json`.
public struct OperatorRuns: Codable, Equatable, Sendable {
    public let name: String
    public let kind: String
    public let `where`: String
    public var ms: [Double]
    public var share: Double?
}

/// Raw samples of one measurement; see `conformance/device_samples.schema.json`.
public struct BenchSamples: Codable, Equatable, Sendable {
    public var schemaVersion = BenchPlan.schemaVersion
    public var engine: String
    public var provider: String
    public var device: BenchDevice
    public var states: [BenchState] = []
    public var placement: [String: Int] = [:]
    public var operators: [OperatorRuns] = []
    public var loadMs: Double = 0
    public var warmLoadMs: Double?
    public var firstRunMs: Double = 0
    public var warmupMs: [Double] = []
    public var latencyMs: [Double] = []
    public var startMs: [Double] = []
    public var blockSamples: [Int] = []
    public var peakMemoryBytes: Int?
    public var endedEarly = ""
    public var kept: [KeptOutput] = []
}

public struct BenchAnswer: Codable, Equatable, Sendable {
    public var schemaVersion = BenchPlan.schemaVersion
    public var samples: BenchSamples?
    public var error: String?

    private enum CodingKeys: String, CodingKey { case schemaVersion, samples, error }

    /// Both stand in the file, `null` where there is none.
    public func encode(to encoder: Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(schemaVersion, forKey: .schemaVersion)
        try container.encode(samples, forKey: .samples)
        try container.encode(error, forKey: .error)
    }
}
