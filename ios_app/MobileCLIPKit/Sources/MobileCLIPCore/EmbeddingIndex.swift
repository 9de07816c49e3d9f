import Foundation

/// A row of the index that matches a query.
public struct Match: Equatable, Sendable {
    public let id: String
    public let score: Float
}

/// Embeddings of a photo library, half precision, in a file that is mapped into memory and searched in chunks, so that the memory that is
/// needed does not grow with it.
///
/// `about.json` names the embedding space, the width and the number of the two data files: `rows-N` holds rows of float16,
/// little-endian; `ids-N` a line for each change, `+ID` for the next row, `-ID` for a row that counts no longer. A row is on the disk
/// before its line is: what an app that was killed had half written is cut off when the index is opened.
public actor EmbeddingIndex {
    private struct About: Codable, Equatable {
        var version = 1
        var embeddingSpace: String
        var width: Int
        var generation = 0
    }

    private static let chunkRows = 4096
    private static let unsavedRows = 64
    private static let unreadable = MobileCLIPError("the index is damaged; delete it and index the photos again")
    private static let unwritable = MobileCLIPError("the index cannot be written; free some storage")

    private let folder: URL
    private var about: About
    private var rows: FileHandle
    private var lines: FileHandle
    private var lineBytes: UInt64

    /// In the order of the rows; empty where a photo was removed.
    private var order: [String] = []
    private var places: [String: Int] = [:]
    private var savedRows: Int
    private var pendingRows = Data()
    private var pendingLines = ""
    private var mapped = Data()

    private var rowBytes: Int { 2 * about.width }

    /// Open an index, or make an empty one.
    ///
    /// - Parameters:
    ///   - folder: the index's own
    ///   - embeddingSpace: of the manifest
    ///   - width: values of an embedding
    /// - Throws: `MobileCLIPError` if it is damaged, or of another embedding space: search would mean nothing
    public init(folder: URL, embeddingSpace: String, width: Int) throws {
        guard width > 0 else { throw MobileCLIPError("an index needs a width; open a bundle first") }
        self.folder = folder
        about = About(embeddingSpace: embeddingSpace, width: width)
        let file = EmbeddingIndex.aboutFile(folder)
        if let data = try? Data(contentsOf: file) {
            guard let found = try? Coders.decoder().decode(About.self, from: data), found.version == about.version else { throw EmbeddingIndex.unreadable }
            guard found.embeddingSpace == embeddingSpace, found.width == width else {
                throw MobileCLIPError("the index was made with another model; delete it and index the photos again")
            }
            about = found
        } else {
            guard !FileManager.default.fileExists(atPath: file.path) else { throw EmbeddingIndex.unreadable }
            do {
                try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
                for name in ["rows", "ids"] { try Data().write(to: EmbeddingIndex.dataFile(folder, name, 0)) }
                try Coders.encoder().encode(about).write(to: file, options: .atomic)
            } catch { throw EmbeddingIndex.unwritable }
        }
        let width = 2 * about.width
        do {
            rows = try FileHandle(forUpdating: EmbeddingIndex.dataFile(folder, "rows", about.generation))
            lines = try FileHandle(forUpdating: EmbeddingIndex.dataFile(folder, "ids", about.generation))
            let text = try lines.readToEnd() ?? Data()
            let whole = text.lastIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? 0
            for line in text.prefix(whole).split(separator: UInt8(ascii: "\n")) {
                guard let id = String(data: line.dropFirst(), encoding: .utf8), !id.isEmpty else { throw EmbeddingIndex.unreadable }
                if let place = places.removeValue(forKey: id) { order[place] = "" }
                switch line.first {
                case UInt8(ascii: "+"):
                    places[id] = order.count
                    order.append(id)
                case UInt8(ascii: "-"): break
                default: throw EmbeddingIndex.unreadable
                }
            }
            lineBytes = UInt64(whole)
            savedRows = order.count
            guard try rows.seekToEnd() >= UInt64(savedRows * width) else { throw EmbeddingIndex.unreadable }
            try rows.truncate(atOffset: UInt64(savedRows * width))
            try lines.truncate(atOffset: lineBytes)
        } catch { throw EmbeddingIndex.unreadable }
        EmbeddingIndex.removeOthers(folder, about.generation)
    }

    /// Ids of everything that can be found.
    public var ids: Set<String> { Set(places.keys) }

    public var count: Int { places.count }

    /// Add a photo or replace its embedding; `save` makes it last.
    ///
    /// - Parameters:
    ///   - id: one line
    ///   - embedding: finite values, as many as the index is wide
    public func put(_ id: String, _ embedding: [Float]) throws {
        guard embedding.count == about.width else { throw MobileCLIPError("a row of \(embedding.count) values does not fit the index; open its model") }
        guard embedding.allSatisfy(\.isFinite) else { throw MobileCLIPError("the model gives no numbers for a photo; export the bundle in fp32") }
        guard !id.isEmpty, !id.utf8.contains(UInt8(ascii: "\n")) else { throw MobileCLIPError("a photo has no usable id; leave it out") }
        forget(id)
        for value in embedding { withUnsafeBytes(of: Half.bits(of: value).littleEndian) { pendingRows.append(contentsOf: $0) } }
        pendingLines += "+\(id)\n"
        places[id] = order.count
        order.append(id)
        if order.count - savedRows >= EmbeddingIndex.unsavedRows { try save() }
    }

    /// Forget a photo; `save` makes it last.
    public func remove(_ id: String) {
        guard forget(id) else { return }
        pendingLines += "-\(id)\n"
    }

    @discardableResult
    private func forget(_ id: String) -> Bool {
        guard let place = places.removeValue(forKey: id) else { return false }
        order[place] = ""
        return true
    }

    /// Make what was put and removed last. What could not be written is kept for the next time.
    public func save() throws {
        guard !pendingLines.isEmpty else { return }
        let text = Data(pendingLines.utf8)
        do {
            try rows.seek(toOffset: UInt64(savedRows * rowBytes))
            try rows.write(contentsOf: pendingRows)
            try rows.synchronize()
            try lines.seek(toOffset: lineBytes)
            try lines.write(contentsOf: text)
            try lines.synchronize()
        } catch {
            try? lines.truncate(atOffset: lineBytes)
            throw EmbeddingIndex.unwritable
        }
        savedRows = order.count
        lineBytes += UInt64(text.count)
        pendingRows.removeAll()
        pendingLines = ""
    }

    /// The photos nearest to a query, best first; equal ones in the order in which they were added.
    ///
    /// - Throws: `MobileCLIPError`, or `CancellationError` where the task was cancelled.
    public func search(_ query: [Float], top: Int) throws -> [Match] {
        guard query.count == about.width else { throw MobileCLIPError("a query of \(query.count) values does not fit the index; open its model") }
        guard query.allSatisfy(\.isFinite) else { throw MobileCLIPError("the model gives no numbers for this text; export the bundle in fp32") }
        try save()
        if mapped.count != savedRows * rowBytes {
            mapped = Data() // two maps at a time are of no use
            guard let data = try? Data(contentsOf: EmbeddingIndex.dataFile(folder, "rows", about.generation), options: .alwaysMapped), data.count == savedRows * rowBytes
            else { throw EmbeddingIndex.unreadable }
            mapped = data
        }
        var best = Best(top)
        let query = HalfQuery(query)
        for first in stride(from: 0, to: savedRows, by: EmbeddingIndex.chunkRows) {
            try Task.checkCancellation()
            mapped.withUnsafeBytes { bytes in
                guard let base = bytes.baseAddress else { return }
                for place in first..<min(first + EmbeddingIndex.chunkRows, savedRows) where !order[place].isEmpty {
                    best.offer(query.dot(base + place * rowBytes), place)
                }
            }
        }
        return best.found.map { Match(id: order[$0.place], score: $0.score) }
    }

    /// Write the files anew where more than half of the rows count no longer.
    public func compact() throws {
        try save()
        guard order.count > 2 * places.count else { return }
        var next = about
        next.generation += 1
        let kept = order.indices.filter { !order[$0].isEmpty }
        let ids = kept.map { order[$0] }
        let old = ["rows", "ids"].map { EmbeddingIndex.dataFile(folder, $0, about.generation) }
        let new = ["rows", "ids"].map { EmbeddingIndex.dataFile(folder, $0, next.generation) }
        let text = Data(ids.map { "+\($0)\n" }.joined().utf8)
        do {
            for file in new { try Data().write(to: file) }
            let newRows = try FileHandle(forUpdating: new[0])
            let newLines = try FileHandle(forUpdating: new[1])
            for place in kept {
                try pooled {
                    try rows.seek(toOffset: UInt64(place * rowBytes))
                    guard let row = try rows.read(upToCount: rowBytes), row.count == rowBytes else { throw EmbeddingIndex.unreadable }
                    try newRows.write(contentsOf: row)
                }
            }
            try newLines.write(contentsOf: text)
            try newRows.synchronize()
            try newLines.synchronize()
            try Coders.encoder().encode(next).write(to: EmbeddingIndex.aboutFile(folder), options: .atomic) // from here on the new ones count
            (rows, lines) = (newRows, newLines)
        } catch {
            for file in new { try? FileManager.default.removeItem(at: file) }
            throw EmbeddingIndex.unwritable
        }
        for file in old { try? FileManager.default.removeItem(at: file) }
        about = next
        mapped = Data()
        order = ids
        places = Dictionary(uniqueKeysWithValues: ids.enumerated().map { ($1, $0) })
        savedRows = ids.count
        lineBytes = UInt64(text.count)
    }

    /// Of an app that was killed while it compacted.
    private static func removeOthers(_ folder: URL, _ generation: Int) {
        let ours = ["rows", "ids"].map { dataFile(folder, $0, generation).lastPathComponent }
        for name in (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        where ["rows-", "ids-"].contains(where: { name.hasPrefix($0) }) && !ours.contains(name) {
            try? FileManager.default.removeItem(at: folder.appendingPathComponent(name))
        }
    }

    private static func aboutFile(_ folder: URL) -> URL { folder.appendingPathComponent("about.json") }

    private static func dataFile(_ folder: URL, _ name: String, _ generation: Int) -> URL { folder.appendingPathComponent("\(name)-\(generation)") }
}

/// The best places so far, best first.
private struct Best {
    private let top: Int
    private(set) var found: [(score: Float, place: Int)] = []

    init(_ top: Int) {
        self.top = max(top, 0)
    }

    /// Places come in ascending order, so that an equal score never goes before one that is there.
    mutating func offer(_ score: Float, _ place: Int) {
        if found.count == top {
            guard let worst = found.last, score > worst.score else { return }
            found.removeLast()
        }
        var low = 0
        var high = found.count
        while low < high {
            let middle = (low + high) / 2
            if found[middle].score < score { high = middle } else { low = middle + 1 }
        }
        found.insert((score, place), at: low)
    }
}
