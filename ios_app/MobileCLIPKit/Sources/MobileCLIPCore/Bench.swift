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

    /// - Parameters:
    ///   - keep: of group g of `keepOf` timed runs the output of run `keep[g % keep.count]` is kept
    ///   - minSeconds: of timed runs, added up
    public init(
        bundle: String, artifact: Artifact, rows: Int, provider: String, threads: Int = 1, mode: String = "burst", warmupRuns: Int, minSamples: Int,
        minSeconds: Double, keep: [Int], keepOf: Int, perOp: Bool = false
    ) {
        self.bundle = bundle
        target = artifact.target
        tower = artifact.tower
        self.artifact = artifact.path
        input = artifact.input
        output = artifact.output
        self.rows = rows
        self.provider = provider
        self.threads = threads
        self.mode = mode
        self.warmupRuns = warmupRuns
        self.minSamples = minSamples
        self.minSeconds = minSeconds
        self.keep = keep
        self.keepOf = keepOf
        self.perOp = perOp
    }

    /// How messages call the measurement.
    public var label: String { "\(bundle) \(target.rawValue) \(tower.rawValue)" }

    /// Whether the output of a timed run is kept for the host to check.
    public func keeps(_ sample: Int) -> Bool {
        sample % keepOf == keep[sample / keepOf % keep.count]
    }
}

public struct PlannedMeasurement: Codable, Equatable, Sendable {
    public let request: BenchRequest
    public let bundle: String
    public let inputs: String

    public init(request: BenchRequest, bundle: String, inputs: String) {
        self.request = request
        self.bundle = bundle
        self.inputs = inputs
    }
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
        guard fits else { throw MobileCLIPError("the plan does not fit together; use the same version of toolkit and app") }
    }

    /// A plan of the app's own.
    ///
    /// - Parameter orders: permutations of the measurements' numbers, round by round
    public init(measurements: [PlannedMeasurement], orders: [[Int]], blockSeconds: Double, blockSamples: Int, coolSeconds: Double) throws {
        schemaVersion = BenchPlan.schemaVersion
        self.measurements = measurements
        self.orders = orders
        self.blockSeconds = blockSeconds
        self.blockSamples = blockSamples
        self.coolSeconds = coolSeconds
        guard fits else { throw MobileCLIPError("there is nothing to measure; choose a bundle") }
    }

    private var fits: Bool {
        !orders.isEmpty && !measurements.isEmpty && blockSamples > 0 && orders.allSatisfy { $0.sorted() == Array(measurements.indices) }
            && measurements.map(\.request).allSatisfy { request in
                !request.keep.isEmpty && request.keepOf > 0 && request.rows > 0 && request.warmupRuns >= 0 && request.input.shape.allSatisfy { $0 > 0 }
            }
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
    /// Base64 of little-endian float32.
    public let values: String

    public init(sample: Int, firstInput: Int, embedding: [Float]) {
        self.sample = sample
        self.firstInput = firstInput
        values = embedding.map(\.bitPattern.littleEndian).withUnsafeBytes { Data($0) }.base64EncodedString()
    }

    public var embedding: [Float] {
        let data = Data(base64Encoded: values) ?? Data()
        return data.withUnsafeBytes { bytes in
            stride(from: 0, to: bytes.count - bytes.count % 4, by: 4).map {
                Float(bitPattern: UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self)))
            }
        }
    }
}

/// What one operator costs; see `conformance/device_samples.schema.json`.
public struct OperatorRuns: Codable, Equatable, Sendable {
    public let name: String
    public let kind: String
    public let `where`: String
    /// One a run; empty where the runtime only estimates.
    public var ms: [Double]
    /// Of the whole, as the runtime estimates it.
    public var share: Double?

    public init(name: String, kind: String, where place: String, ms: [Double] = [], share: Double? = nil) {
        self.name = name
        self.kind = kind
        self.where = place
        self.ms = ms
        self.share = share
    }
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
