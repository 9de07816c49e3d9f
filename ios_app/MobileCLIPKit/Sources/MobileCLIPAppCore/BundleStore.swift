import Foundation
import MobileCLIPCore

/// The bundles in the app's documents: a folder each, as a user sees them in Files.
public struct BundleStore: Sendable {
    private static let halfDone = ".adding-"
    private static let maxNameCharacters = 60
    private static let maxManifestBytes = 16 << 20
    private static let manifestName = "manifest.json"

    public let folder: URL
    private let target: Target
    private let maxBytes: Int
    private let freeBytes: @Sendable () -> Int?

    /// - Parameters:
    ///   - target: whose artifacts the app can run
    ///   - maxBytes: of a bundle
    ///   - freeBytes: what the disk has left; nil where nobody knows
    public init(folder: URL, target: Target = .coreml, maxBytes: Int = 4 << 30, freeBytes: (@Sendable () -> Int?)? = nil) {
        self.folder = folder
        self.target = target
        self.maxBytes = maxBytes
        self.freeBytes = freeBytes ?? { (try? FileManager.default.attributesOfFileSystem(forPath: folder.path))?[.systemFreeSize] as? Int }
    }

    /// Names of what looks like a bundle, in alphabetical order.
    public func names() -> [String] {
        let found = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        return found.filter { name in
            !name.hasPrefix(".") && FileManager.default.fileExists(atPath: folder.appendingPathComponent(name).appendingPathComponent(BundleStore.manifestName).path)
        }.sorted()
    }

    /// Open a bundle: its manifest and all its files are checked, which reads them once.
    public func open(_ name: String) throws -> ModelBundle {
        guard names().contains(name) else { throw MobileCLIPError("there is no bundle \(name) any more; add it again in Settings") }
        return try ModelBundle(folder: folder.appendingPathComponent(name), targets: [target])
    }

    /// A bundle's manifest, its files not being checked; nil where it cannot be read.
    public func manifest(_ name: String) -> Manifest? {
        guard let data = try? Data(contentsOf: folder.appendingPathComponent(name).appendingPathComponent(BundleStore.manifestName)) else { return nil }
        return try? Manifest(parsing: data)
    }

    public func remove(_ name: String) throws {
        guard names().contains(name) else { return }
        do {
            try FileManager.default.removeItem(at: folder.appendingPathComponent(name))
        } catch {
            throw MobileCLIPError("\(name) cannot be removed; close the app, open it again and try once more")
        }
    }

    /// Add a bundle from a folder or a zip file; only what its manifest names, and what this app can run, is copied. It appears when it is
    /// complete and checked.
    ///
    /// - Returns: its name here
    /// - Throws: `MobileCLIPError`; nothing is left then. `CancellationError` where the task was cancelled.
    public func add(_ source: URL) throws -> String {
        removeHalfDone()
        var isFolder: ObjCBool = false
        guard FileManager.default.fileExists(atPath: source.path, isDirectory: &isFolder) else {
            throw MobileCLIPError("\(source.lastPathComponent) is not there any more; choose it again")
        }
        let files: any BundleFiles = try isFolder.boolValue ? FolderFiles(source) : ZipFiles(source)
        let data = try files.data(BundleStore.manifestName, limit: BundleStore.maxManifestBytes)
        let manifest = try Manifest(parsing: data)
        let wanted = [manifest.tokenizer.file, manifest.golden] + manifest.artifacts.filter { $0.target == target }.flatMap(\.files)
        let bytes = try wanted.reduce(0) { sum, file in
            guard file.sizeBytes <= maxBytes - sum else { throw MobileCLIPError("the bundle is larger than \(maxBytes >> 20) MiB; export a smaller model") }
            return sum + file.sizeBytes
        }
        if let free = freeBytes(), bytes > free { throw MobileCLIPError("the bundle needs \(bytes >> 20) MiB and \(free >> 20) MiB are free; free some storage") }
        let half = folder.appendingPathComponent(BundleStore.halfDone + UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: half) }
        try write(data, to: half.appendingPathComponent(BundleStore.manifestName))
        for file in wanted {
            try Task.checkCancellation()
            try copy(file, from: files, to: half.appendingPathComponent(file.path))
        }
        _ = try ModelBundle(folder: half, targets: [target])
        let name = freeName(files.name, for: data)
        let place = folder.appendingPathComponent(name)
        guard !FileManager.default.fileExists(atPath: place.path) else { return name } // the same one is there
        do {
            try FileManager.default.moveItem(at: half, to: place)
        } catch { throw MobileCLIPErrors.unwritable }
        return name
    }

    private func copy(_ file: FileEntry, from files: any BundleFiles, to place: URL) throws {
        try write(Data(), to: place)
        guard let handle = try? FileHandle(forWritingTo: place) else { throw MobileCLIPErrors.unwritable }
        defer { try? handle.close() }
        try files.read(file.path, limit: file.sizeBytes) { part in
            try Task.checkCancellation()
            do {
                try handle.write(contentsOf: part)
            } catch { throw MobileCLIPErrors.unwritable }
        }
    }

    private func write(_ data: Data, to place: URL) throws {
        do {
            try FileManager.default.createDirectory(at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
            try data.write(to: place)
        } catch { throw MobileCLIPErrors.unwritable }
    }

    /// A name that is free, or that of the same bundle.
    private func freeName(_ wanted: String, for manifest: Data) -> String {
        let plain = String(wanted.map { $0.isLetter || $0.isNumber || "-_ .".contains($0) ? $0 : "-" }.prefix(BundleStore.maxNameCharacters))
        let stem = plain.isEmpty || plain.hasPrefix(".") || PlanFolder.isPlanName(plain) ? "bundle" : plain
        var name = stem
        var number = 2
        while true {
            let place = folder.appendingPathComponent(name)
            if !FileManager.default.fileExists(atPath: place.path) { return name }
            if (try? Data(contentsOf: place.appendingPathComponent(BundleStore.manifestName))) == manifest, (try? open(name)) != nil { return name }
            name = "\(stem)-\(number)"
            number += 1
        }
    }

    /// Of an app that was killed.
    private func removeHalfDone() {
        for name in (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? [] where name.hasPrefix(BundleStore.halfDone) {
            try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
        }
    }
}

/// Where a bundle comes from.
private protocol BundleFiles {
    /// What a user calls it.
    var name: String { get }

    /// Read a file of the bundle, piece by piece.
    func read(_ path: String, limit: Int, sink: (Data) throws -> Void) throws
}

extension BundleFiles {
    func data(_ path: String, limit: Int) throws -> Data {
        var all = Data()
        try read(path, limit: limit) { all += $0 }
        return all
    }
}

private struct FolderFiles: BundleFiles {
    private let folder: URL

    var name: String { folder.lastPathComponent }

    init(_ folder: URL) throws {
        self.folder = folder
        guard FileManager.default.fileExists(atPath: folder.appendingPathComponent("manifest.json").path) else {
            throw MobileCLIPError("\(folder.lastPathComponent) is no bundle: it has no manifest.json; make one with: mobileclip export")
        }
    }

    func read(_ path: String, limit: Int, sink: (Data) throws -> Void) throws {
        let file = folder.appendingPathComponent(path).resolvingSymlinksInPath()
        guard file.path.hasPrefix(folder.resolvingSymlinksInPath().path + "/") else { throw MobileCLIPError("\(path) leads out of the bundle; copy it again") }
        guard let handle = try? FileHandle(forReadingFrom: file) else { throw MobileCLIPError("\(path) is missing; copy the bundle again") }
        defer { try? handle.close() }
        var total = 0
        do {
            try FilePieces.read(handle) { part in
                total += part.count
                guard total <= limit else { throw MobileCLIPError("\(path) is larger than the manifest says; copy the bundle again") }
                try sink(part)
            }
        } catch let error where error is MobileCLIPError || error is CancellationError {
            throw error
        } catch { throw MobileCLIPError("\(path) cannot be read; copy the bundle again") }
    }
}

private struct ZipFiles: BundleFiles {
    let name: String
    private let archive: ZipArchive
    /// The bundle's folder in the archive, with a slash; empty at the top.
    private let root: String

    init(_ url: URL) throws {
        archive = try ZipArchive(url)
        let roots = archive.entries.keys.filter { $0 == "manifest.json" || ($0.hasSuffix("/manifest.json") && $0.split(separator: "/").count == 2) }
        guard let found = roots.min(by: { ($0.utf8.count, $0) < ($1.utf8.count, $1) }) else {
            throw MobileCLIPError("\(url.lastPathComponent) holds no bundle: it has no manifest.json; zip the folder that mobileclip export has made")
        }
        root = String(found.dropLast("manifest.json".count))
        name = root.isEmpty ? url.deletingPathExtension().lastPathComponent : String(root.dropLast())
    }

    func read(_ path: String, limit: Int, sink: (Data) throws -> Void) throws {
        guard let entry = archive.entries[root + path] else { throw MobileCLIPError("\(path) is missing in the zip file; zip the whole bundle again") }
        try archive.read(entry, limit: limit, sink: sink)
    }
}
