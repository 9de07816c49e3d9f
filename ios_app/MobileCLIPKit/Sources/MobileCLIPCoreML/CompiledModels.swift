#if canImport(CoreML)
import CoreML
import Foundation
import MobileCLIPCore

/// Packages that CoreML has compiled, kept in a folder of caches; one is compiled again when its files or the system have changed.
public struct CompiledModels: Sendable {
    private let folder: URL

    public init(folder: URL) {
        self.folder = folder
    }

    /// The compiled model of an artifact.
    ///
    /// - Throws: `MobileCLIPError` if CoreML refuses the package, or nothing can be written
    public func model(of artifact: Artifact, in bundle: ModelBundle) async throws -> URL {
        let place = place(artifact)
        if FileManager.default.fileExists(atPath: place.path) { return place }
        let compiled = try await CompiledModels.compiled(bundle.url(artifact.path))
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try FileManager.default.moveItem(at: compiled, to: place)
        } catch {
            if FileManager.default.fileExists(atPath: place.path) { return place } // another task was faster
            throw MobileCLIPError("the compiled model cannot be written; free some storage")
        }
        return place
    }

    /// Give the room of an artifact's compiled model back.
    public func remove(_ artifact: Artifact) { try? FileManager.default.removeItem(at: place(artifact)) }

    private func place(_ artifact: Artifact) -> URL {
        let about = artifact.files.map(\.sha256).joined() + ProcessInfo.processInfo.operatingSystemVersionString
        return folder.appendingPathComponent(Hash.sha256(Data(about.utf8))).appendingPathExtension("mlmodelc")
    }

    /// Compile a package into a temporary folder, which the caller moves or removes.
    static func compiled(_ package: URL) async throws -> URL {
        do {
            return try await MLModel.compileModel(at: package)
        } catch {
            throw MobileCLIPError("CoreML cannot compile \(package.lastPathComponent) (\(error.localizedDescription)); export it again")
        }
    }
}
#endif
