// Declarations for type checking; see README.md.
@_exported import CoreVideo
@_exported import FoundationApple

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
open class MLModelConfiguration: NSObject {
    public override init() { declared() }
    open var computeUnits: MLComputeUnits { get { declared() } set { declared() } }
}

public enum MLMultiArrayDataType: Int, Sendable { case double, float32, float16, int32 }
open class MLMultiArray: NSObject {
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws { declared() }
    open var dataType: MLMultiArrayDataType { declared() }
    open var shape: [NSNumber] { declared() }
    open var count: Int { declared() }
    public func withUnsafeMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R) rethrows -> R { declared() }
}
public protocol MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}
public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public init(_ multiArray: MLMultiArray) { declared() }
    public var scalars: [Scalar] { declared() }
}

open class MLFeatureValue: NSObject {
    public convenience init(multiArray value: MLMultiArray) { declared() }
    public convenience init(pixelBuffer value: CVPixelBuffer) { declared() }
    open var multiArrayValue: MLMultiArray? { declared() }
}
public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}
open class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    public init(dictionary: [String: Any]) throws { declared() }
    public var featureNames: Set<String> { declared() }
    public func featureValue(for featureName: String) -> MLFeatureValue? { declared() }
}

open class MLFeatureDescription: NSObject {}
open class MLModelDescription: NSObject {
    open var inputDescriptionsByName: [String: MLFeatureDescription] { declared() }
    open var outputDescriptionsByName: [String: MLFeatureDescription] { declared() }
}
open class MLModel: NSObject {
    public convenience init(contentsOf url: URL, configuration: MLModelConfiguration) throws { declared() }
    open var modelDescription: MLModelDescription { declared() }
    open func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { declared() }
    open class func compileModel(at modelURL: URL) async throws -> URL { declared() }
}

public final class MLCPUComputeDevice: NSObject {}
public final class MLGPUComputeDevice: NSObject {}
public final class MLNeuralEngineComputeDevice: NSObject {}
public enum MLComputeDevice {
    case cpu(MLCPUComputeDevice)
    case gpu(MLGPUComputeDevice)
    case neuralEngine(MLNeuralEngineComputeDevice)
}
public enum MLModelStructure {
    case neuralNetwork(NeuralNetwork)
    case program(Program)
    case pipeline(Pipeline)
    case unsupported
    public struct NeuralNetwork {}
    public struct Pipeline {}
    public struct Program {
        public let functions: [String: Function]
        public struct Function { public let block: Block }
        public struct Block { public let operations: [Operation] }
        public struct NamedValueType { public let name: String }
        public struct Operation {
            public let operatorName: String
            public let outputs: [NamedValueType]
        }
    }
}
public final class MLComputePlan {
    public struct DeviceUsage {
        public let preferred: MLComputeDevice
        public let supported: [MLComputeDevice]
    }
    public struct Cost { public let weight: Double }
    public var modelStructure: MLModelStructure { declared() }
    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLComputePlan { declared() }
    public func deviceUsage(for operation: MLModelStructure.Program.Operation) -> DeviceUsage? { declared() }
    public func estimatedCost(of operation: MLModelStructure.Program.Operation) -> Cost? { declared() }
}
