import Foundation
import MobileCLIPCore

/// A folder of its own, gone with the object.
public final class Scratch {
    public let url: URL

    public init() throws {
        url = FileManager.default.temporaryDirectory.appendingPathComponent("mobileclip-tests-\(UUID().uuidString)").resolvingSymlinksInPath()
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: url) }
}

/// Small bundles that `FakeSession` computes: of a picture the mean of its channels and 1, of a caption its ids at four places.
public struct BundleFixture {
    public static let side = 4
    public static let width = 4
    public static let contextLength = 77

    public var name = "fixture"
    public var space = String(repeating: "a", count: 64)
    public var batch = 1
    public var baked = false
    public var precision = "fp32"
    /// Added to a value of each golden embedding.
    public var error: Float = 0
    /// What the model weighs.
    public var weights = Data("weights".utf8)
    public var tokenizer = Data("{}".utf8)
    /// In place of the golden file that fits.
    public var golden: Data?

    public init() {}

    /// The tokenizer of the whole vocabulary, where `MOBILECLIP_TOKENIZER` names one.
    public static func realTokenizer() throws -> Data? {
        try ProcessInfo.processInfo.environment["MOBILECLIP_TOKENIZER"].map { try Data(contentsOf: URL(fileURLWithPath: $0)) }
    }

    /// Every file of the bundle, by path.
    public func files() -> [String: Data] {
        let side = BundleFixture.side
        let area = side * side
        let pictures: [[Float]] = [[0.1, 0.2, 0.3], [0.9, 0.5, 0.1]]
        let captions: [[Int32]] = [[1, 2, 3, 4], [9, 8, 7, 6]].map { $0 + [Int32](repeating: 0, count: BundleFixture.contextLength - 4) }
        let levels = pictures.map { channels in baked ? (0..<3 * area).map { UInt8(255 * channels[$0 % 3]) } : [] }
        let imageBytes = baked ? Data(levels.joined()) : Data(floats: pictures.flatMap { channels in (0..<3 * area).map { channels[$0 / area] } })
        func golden(_ tower: Tower, _ rows: Data) -> [Float] {
            let bytes = rows.count / 2
            return (0..<2).flatMap { row in
                var one = FakeSession.embedding(tower, Data(rows.dropFirst(row * bytes).prefix(bytes)), baked: baked)
                one[0] += error
                return one
            }
        }
        let textBytes = Data(ints: captions.flatMap { $0 })
        let tensors = SafeTensorsWriter.bytes([
            ("image.input", baked ? "U8" : "F32", baked ? [2, side, side, 3] : [2, 3, side, side], imageBytes),
            ("image.embedding", "F32", [2, BundleFixture.width], Data(floats: golden(.image, imageBytes))),
            ("text.input", "I32", [2, BundleFixture.contextLength], textBytes),
            ("text.embedding", "F32", [2, BundleFixture.width], Data(floats: golden(.text, textBytes))),
        ])
        var files = ["golden.safetensors": self.golden ?? tensors, "tokenizer.json": tokenizer, "reference.safetensors": SafeTensorsWriter.bytes([])]
        for tower in Tower.allCases {
            files["\(tower.rawValue).mlpackage/Manifest.json"] = Data("{}".utf8)
            files["\(tower.rawValue).mlpackage/Data/weights.bin"] = weights
        }
        files["manifest.json"] = manifest(files)
        return files
    }

    /// Write the bundle into a new folder of `parent`.
    @discardableResult
    public func write(in parent: URL) throws -> URL {
        let folder = parent.appendingPathComponent(name)
        for (path, data) in files() {
            let file = folder.appendingPathComponent(path)
            try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
            try data.write(to: file)
        }
        return folder
    }

    private func manifest(_ files: [String: Data]) -> Data {
        func entry(_ path: String) -> String {
            let data = files[path] ?? Data()
            return #"{"path":"\#(path)","size_bytes":\#(data.count),"sha256":"\#(Hash.sha256(data))"}"#
        }
        func artifact(_ tower: Tower, _ input: String) -> String {
            let parts = ["Manifest.json", "Data/weights.bin"].map { entry("\(tower.rawValue).mlpackage/\($0)") }.joined(separator: ",")
            return #"{"target":"coreml","tower":"\#(tower.rawValue)","backend":"coreml","path":"\#(tower.rawValue).mlpackage","files":[\#(parts)],"input":\#(input),"#
                + #""output":{"name":"embedding","dtype":"float32","shape":[\#(batch),\#(BundleFixture.width)]}}"#
        }
        let side = BundleFixture.side
        let image = #"{"name":"image","dtype":"\#(baked ? "uint8" : "float32")","shape":[\#(batch),\#(baked ? "\(side),\(side),3" : "3,\(side),\(side)")]}"#
        let text = #"{"name":"tokens","dtype":"int32","shape":[\#(batch),\#(BundleFixture.contextLength)]}"#
        let body = """
            {"schema_version":1,"model":{"name":"fixture","trained":true,"logit_scale":100.0},"embedding_space":"\(space)","embed_dim":\(BundleFixture.width),
            "options":{"precision":"\(precision)","batch":\(batch),"normalize":true},
            "preprocess":{"resolution":\(side),"mean":[0.0,0.0,0.0],"std":[1.0,1.0,1.0],"interpolation":"bilinear","resize":"shortest","baked":\(baked)},
            "tokenizer":{"file":\(entry("tokenizer.json")),"context_length":\(BundleFixture.contextLength)},
            "artifacts":[\(artifact(.image, image)),\(artifact(.text, text))],
            "golden":\(entry("golden.safetensors")),"reference":\(entry("reference.safetensors"))}
            """
        guard let document = try? JSON(parsing: Data(body.utf8)), case .object(var members) = document else { return Data() }
        members["manifest_sha256"] = .string(Hash.sha256(Data(document.canonical.utf8)))
        return Data(JSON.object(members).canonical.utf8)
    }
}

/// Computes what `BundleFixture` says, or fails.
public final class FakeSession: Session {
    public let engine = "fake 1"
    private let request: (tower: Tower, batch: Int, baked: Bool)
    private let before: () throws -> Void

    public init(_ artifact: Artifact, before: @escaping () throws -> Void = {}) {
        request = (artifact.tower, artifact.input.shape[0], artifact.input.dtype == "uint8")
        self.before = before
    }

    public init(_ request: BenchRequest, before: @escaping () throws -> Void = {}) {
        self.request = (request.tower, request.input.shape[0], request.input.dtype == "uint8")
        self.before = before
    }

    public func run(_ input: Data) throws -> [Float] {
        try before()
        let bytes = input.count / request.batch
        return (0..<request.batch).flatMap { FakeSession.embedding(request.tower, Data(input.dropFirst($0 * bytes).prefix(bytes)), baked: request.baked) }
    }

    static func embedding(_ tower: Tower, _ row: Data, baked: Bool) -> [Float] {
        switch tower {
        case .text: return row.words.prefix(4).map { Float(Int32(bitPattern: $0)) }
        case .image:
            let values: [Float] = baked ? row.map { Float($0) / 255 } : row.words.map { Float(bitPattern: $0) }
            let area = values.count / 3
            var sums: [Float] = [0, 0, 0]
            for (place, value) in values.enumerated() { sums[baked ? place % 3 : place / area] += value / Float(area) }
            return sums + [1]
        }
    }
}

public enum SafeTensorsWriter {
    public static func bytes(_ tensors: [(name: String, dtype: String, shape: [Int], data: Data)]) -> Data {
        var at = 0
        let entries = tensors.map { tensor in
            defer { at += tensor.data.count }
            return #""\#(tensor.name)":{"dtype":"\#(tensor.dtype)","shape":\#(tensor.shape),"data_offsets":[\#(at),\#(at + tensor.data.count)]}"#
        }
        return withHeader("{\(entries.joined(separator: ","))}", tensors.reduce(Data()) { $0 + $1.data })
    }

    public static func withHeader(_ header: String, _ body: Data) -> Data {
        withUnsafeBytes(of: UInt64(header.utf8.count).littleEndian) { Data($0) } + Data(header.utf8) + body
    }
}

extension Data {
    public init(floats: [Float]) { self.init(words: floats.map(\.bitPattern)) }

    public init(ints: [Int32]) { self.init(words: ints.map { UInt32(bitPattern: $0) }) }

    private init(words: [UInt32]) { self = words.map(\.littleEndian).withUnsafeBytes { Data($0) } }

    var words: [UInt32] {
        withUnsafeBytes { bytes in stride(from: 0, to: bytes.count, by: 4).map { UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self)) } }
    }
}
