#if canImport(CoreML)
import CoreML
import CoreVideo
import Foundation
import MobileCLIPCore

/// A tower in CoreML; for one thread at a time. Its input's memory is used again for each run.
public final class CoreMLSession: Session {
    public let engine: String
    private let model: MLModel
    private let input: CoreMLInput
    private let output: TensorInfo

    /// - Parameters:
    ///   - compiled: a `.mlmodelc`
    ///   - input: as the manifest has it
    ///   - units: what CoreML may choose from: `all`, `cpuAndNeuralEngine`, `cpuAndGPU`, `cpuOnly`
    public init(compiled: URL, input: TensorInfo, output: TensorInfo, units: String) throws {
        let configuration = try CoreMLSession.configuration(units)
        do {
            model = try MLModel(contentsOf: compiled, configuration: configuration)
        } catch {
            throw MobileCLIPError("CoreML cannot load \(compiled.lastPathComponent) (\(error.localizedDescription)); choose another compute unit, or export it again")
        }
        let description = model.modelDescription
        guard description.inputDescriptionsByName[input.name] != nil, description.outputDescriptionsByName[output.name] != nil else {
            throw MobileCLIPError("the model has no \(input.name) or no \(output.name); export it again")
        }
        self.input = try CoreMLInput(input)
        self.output = output
        let version = ProcessInfo.processInfo.operatingSystemVersion
        #if os(macOS)
        let system = "macOS"
        #else
        let system = "iOS"
        #endif
        engine = "CoreML, \(system) \(version.majorVersion).\(version.minorVersion).\(version.patchVersion)"
    }

    public func run(_ input: Data) throws -> [Float] {
        try autoreleasepool {
            try self.input.fill(input)
            let result: any MLFeatureProvider
            do {
                result = try model.prediction(from: self.input.provider)
            } catch {
                throw MobileCLIPError("CoreML cannot run the model (\(error.localizedDescription)); choose another compute unit")
            }
            guard let array = result.featureValue(for: output.name)?.multiArrayValue, array.dataType == .float32, array.count == output.shape.reduce(1, *) else {
                throw MobileCLIPError("the model gives something else than \(output.shape) numbers; export it again")
            }
            return MLShapedArray<Float>(array).scalars // whatever its strides are
        }
    }

    static func configuration(_ units: String) throws -> MLModelConfiguration {
        let known: [String: MLComputeUnits] = ["all": .all, "cpuAndNeuralEngine": .cpuAndNeuralEngine, "cpuAndGPU": .cpuAndGPU, "cpuOnly": .cpuOnly]
        guard let found = known[units] else { throw MobileCLIPError("\(units) is no compute unit that this app knows; update the app") }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = found
        return configuration
    }
}

/// An input that CoreML reads from: numbers, or for baked preprocessing a picture.
private final class CoreMLInput {
    let provider: MLDictionaryFeatureProvider
    private let bytes: Int
    private let write: (Data) throws -> Void

    init(_ info: TensorInfo) throws {
        let count = info.shape.reduce(1, *)
        switch info.dtype {
        case "float32", "int32":
            let array: MLMultiArray
            do {
                array = try MLMultiArray(shape: info.shape.map { NSNumber(value: $0) }, dataType: info.dtype == "int32" ? .int32 : .float32)
            } catch { throw CoreMLInput.noMemory }
            provider = try MLDictionaryFeatureProvider(dictionary: [info.name: MLFeatureValue(multiArray: array)])
            bytes = 4 * count
            write = { data in
                try array.withUnsafeMutableBytes { target, _ in
                    guard target.count == data.count else { throw CoreMLInput.noMemory }
                    data.copyBytes(to: target)
                }
            }
        case "uint8" where info.shape.count == 4 && info.shape[0] == 1 && info.shape[3] == 3:
            let (height, width) = (info.shape[1], info.shape[2])
            let buffer = try CoreMLInput.pixelBuffer(width, height)
            provider = try MLDictionaryFeatureProvider(dictionary: [info.name: MLFeatureValue(pixelBuffer: buffer)])
            bytes = count
            write = { try CoreMLInput.fill(buffer, width, height, $0) }
        default: throw MobileCLIPError("inputs of \(info.dtype) \(info.shape) are not known; update the app")
        }
    }

    func fill(_ data: Data) throws {
        guard data.count == bytes else { throw MobileCLIPError("an input of \(data.count) bytes does not fit the model's \(bytes); start again") }
        try write(data)
    }

    private static let noMemory = MobileCLIPError("there is no memory for the model's input; close other apps")

    private static func pixelBuffer(_ width: Int, _ height: Int) throws -> CVPixelBuffer {
        var buffer: CVPixelBuffer?
        let attributes = [kCVPixelBufferIOSurfacePropertiesKey as String: [String: Any]()]
        guard CVPixelBufferCreate(nil, width, height, kCVPixelFormatType_32BGRA, attributes as CFDictionary, &buffer) == kCVReturnSuccess, let buffer else { throw noMemory }
        return buffer
    }

    /// RGB without padding to BGRA with it.
    private static func fill(_ buffer: CVPixelBuffer, _ width: Int, _ height: Int, _ rgb: Data) throws {
        guard CVPixelBufferLockBaseAddress(buffer, []) == kCVReturnSuccess, let base = CVPixelBufferGetBaseAddress(buffer) else { throw noMemory }
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        let rowBytes = CVPixelBufferGetBytesPerRow(buffer)
        rgb.withUnsafeBytes { (source: UnsafeRawBufferPointer) in
            for y in 0..<height {
                let row = (base + y * rowBytes).assumingMemoryBound(to: UInt8.self)
                for x in 0..<width {
                    let from = 3 * (y * width + x)
                    row[4 * x] = source[from + 2]
                    row[4 * x + 1] = source[from + 1]
                    row[4 * x + 2] = source[from]
                    row[4 * x + 3] = 255
                }
            }
        }
    }
}
#endif
