import Foundation

public enum Target: String, Codable, Sendable { case onnx, executorch, coreml }
public enum Tower: String, Codable, CaseIterable, Sendable { case image, text }
public enum Interpolation: String, Codable, Sendable { case bilinear, bicubic }

/// `shortest`: shortest side to the resolution, then a centre crop; `squash`: both sides, without a crop.
public enum Resize: String, Codable, Sendable { case shortest, squash }

public struct FileEntry: Codable, Equatable, Sendable {
    public let path: String
    public let sizeBytes: Int
    public let sha256: String
}

public struct TensorInfo: Codable, Equatable, Sendable {
    public let name: String
    public let dtype: String
    public let shape: [Int]
}

public struct ModelInfo: Codable, Equatable, Sendable {
    public let name: String
    public let trained: Bool
    public let logitScale: Double
}

public struct PreprocessInfo: Codable, Equatable, Sendable {
    public let resolution: Int
    public let mean: [Float]
    public let std: [Float]
    public let interpolation: Interpolation
    public let resize: Resize
    /// The graph takes uint8 RGB (N, R, R, 3), in CoreML an RGB image, and does everything after the crop itself.
    public var baked: Bool?
}

public struct TokenizerInfo: Codable, Equatable, Sendable {
    public let file: FileEntry
    public let contextLength: Int
}

public struct BundleOptions: Codable, Equatable, Sendable {
    public let precision: String
    public let batch: Int
    public let normalize: Bool
}

public struct Artifact: Codable, Equatable, Sendable {
    public let target: Target
    public let tower: Tower
    public let backend: String
    public let path: String
    public let files: [FileEntry]
    public let input: TensorInfo
    public let output: TensorInfo
}

/// `manifest.json` of a bundle; see `conformance/manifest.schema.json`.
public struct Manifest: Codable, Equatable, Sendable {
    public static let schemaVersion = "1"
    private static let maxResolution = 1024
    private static let maxSide = 1 << 16
    private static let maxValues = 1 << 28

    public let model: ModelInfo
    /// Embeddings may be compared where this is equal: same weights, preprocessing and tokenizer.
    public let embeddingSpace: String
    public let embedDim: Int
    public let options: BundleOptions
    public let preprocess: PreprocessInfo
    public let tokenizer: TokenizerInfo
    public let artifacts: [Artifact]
    public let golden: FileEntry
    public let reference: FileEntry

    /// The manifest in a JSON text, checked: its schema version, its own hash, that its paths stay inside and that its parts fit together.
    public init(parsing data: Data) throws {
        let document = try JSON(parsing: data)
        guard case .object(var members) = document else { throw MobileCLIPError("manifest.json is no JSON object; copy the bundle again") }
        guard members["schema_version"] == .number(Manifest.schemaVersion) else {
            let found = members["schema_version"]?.canonical.prefix(20) ?? "none"
            throw MobileCLIPError("the bundle has schema version \(found), this app reads \(Manifest.schemaVersion); export it again, or update the app")
        }
        let seal = members.removeValue(forKey: "manifest_sha256")
        guard seal == .string(Hash.sha256(Data(JSON.object(members).canonical.utf8))) else {
            throw MobileCLIPError("manifest.json was changed after the export; export the bundle again instead of editing it")
        }
        do {
            self = try Coders.decoder().decode(Manifest.self, from: data)
        } catch {
            throw MobileCLIPError("manifest.json does not fit together (\(Coders.reason(error))); export the bundle again")
        }
        if let wrong = flaw() { throw MobileCLIPError("manifest.json does not fit together (\(wrong)); export the bundle again") }
    }

    /// Every file of the bundle but the manifest itself.
    public var files: [FileEntry] { [tokenizer.file, golden, reference] + artifacts.flatMap(\.files) }

    /// The artifact of a target and tower, if there is one.
    public func artifact(_ target: Target, _ tower: Tower) -> Artifact? {
        artifacts.first { $0.target == target && $0.tower == tower }
    }

    private func flaw() -> String? {
        let side = preprocess.resolution
        guard (1...Manifest.maxResolution).contains(side) else { return "a resolution of \(side)" }
        guard preprocess.mean.count == 3, preprocess.std.count == 3 else { return "mean and std need three values each" }
        let baked = preprocess.baked ?? false
        let pixels = TensorInfo(name: "image", dtype: baked ? "uint8" : "float32", shape: baked ? [options.batch, side, side, 3] : [options.batch, 3, side, side])
        let tokens = TensorInfo(name: "tokens", dtype: "int32", shape: [options.batch, tokenizer.contextLength])
        let output = TensorInfo(name: "embedding", dtype: "float32", shape: [options.batch, embedDim])
        for artifact in artifacts {
            let wanted = artifact.tower == .image ? pixels : tokens
            guard artifact.input == wanted, Manifest.isUsable(wanted.shape) else { return "\(artifact.path) takes \(artifact.input.shape)" }
            guard artifact.output == output, Manifest.isUsable(output.shape) else { return "\(artifact.path) gives \(artifact.output.shape)" }
            guard !artifact.files.isEmpty, artifact.files.allSatisfy({ $0.path == artifact.path || $0.path.hasPrefix("\(artifact.path)/") }) else {
                return "\(artifact.path) is not among its files"
            }
        }
        for file in files {
            guard Manifest.staysInside(file.path) else { return "\(file.path) leaves the bundle" }
            guard file.sizeBytes >= 0, file.sha256.utf8.count == 64, file.sha256.allSatisfy({ "0123456789abcdef".contains($0) }) else {
                return "the size or hash of \(file.path)"
            }
        }
        return nil
    }

    /// Whether the values can be counted, and fit into a phone.
    private static func isUsable(_ shape: [Int]) -> Bool {
        shape.allSatisfy { (1...maxSide).contains($0) } && shape.reduce(1, *) <= maxValues
    }

    private static func staysInside(_ path: String) -> Bool {
        !path.isEmpty && !path.hasPrefix("/") && !path.unicodeScalars.contains { $0 == "\\" || $0 == ":" || $0 == "\0" }
            && !path.split(separator: "/", omittingEmptySubsequences: false).contains("..")
    }
}

/// JSON as the toolkit's files have it.
enum Coders {
    static func decoder() -> JSONDecoder {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return decoder
    }

    static func encoder() -> JSONEncoder {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        return encoder
    }

    static func reason(_ error: Error) -> String {
        switch error {
        case DecodingError.keyNotFound(let key, _): return "\(key.stringValue) is missing"
        case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context), DecodingError.dataCorrupted(let context):
            return context.codingPath.map(\.stringValue).joined(separator: ".")
        default: return "unreadable"
        }
    }
}

/// A bundle whose manifest, and every file that an app needs of it, was checked.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest

    private static let maxManifestBytes = 16 << 20

    /// Open a folder.
    ///
    /// - Parameter targets: whose artifacts are needed; files of others may be missing
    /// - Throws: `MobileCLIPError` if it is no bundle, damaged, incomplete, or without what is needed
    public init(folder: URL, targets: Set<Target>) throws {
        let data: Data
        do {
            data = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
        } catch {
            throw MobileCLIPError("\(folder.lastPathComponent) is no bundle: it has no manifest.json; make one with: mobileclip export")
        }
        guard data.count <= ModelBundle.maxManifestBytes else { throw MobileCLIPError("manifest.json is too large; export the bundle again") }
        let manifest = try Manifest(parsing: data)
        let artifacts = manifest.artifacts.filter { targets.contains($0.target) }
        guard !artifacts.isEmpty else {
            let wanted = targets.map(\.rawValue).sorted().joined(separator: " or ")
            throw MobileCLIPError("the bundle has nothing for \(wanted); export it with: mobileclip export --target \(targets.map(\.rawValue).sorted().first ?? "all")")
        }
        self.folder = folder
        self.manifest = manifest
        for entry in [manifest.tokenizer.file, manifest.golden] + artifacts.flatMap(\.files) { try check(entry) }
    }

    public func url(_ path: String) -> URL { folder.appendingPathComponent(path) }

    private func check(_ entry: FileEntry) throws {
        let file = url(entry.path).resolvingSymlinksInPath()
        guard file.path.hasPrefix(folder.resolvingSymlinksInPath().path + "/") else {
            throw MobileCLIPError("\(entry.path) leads out of the bundle; copy it again")
        }
        guard FileManager.default.fileExists(atPath: file.path) else { throw MobileCLIPError("\(entry.path) is missing; copy the bundle again") }
        let found = try? Hash.sha256(of: file)
        guard found == entry.sha256 else {
            throw MobileCLIPError("\(entry.path) is not what was exported (its sha256 differs); copy the bundle again")
        }
    }
}
