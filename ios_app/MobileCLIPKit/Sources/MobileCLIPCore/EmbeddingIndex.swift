import Foundation

/// A row of the index that matches a query.
public struct Match: Equatable, Sendable {
    public let id: String
    public let score: Float
}

/// Embeddings of a photo library, half precision, searched in chunks of a file, so that the memory that is needed does not grow with it.
///
/// The file `rows` holds rows of float16, little-endian; `ids.json` the embedding space, the width and the ids in the order of the rows,
/// an empty one where a photo was removed. The ids are written after the rows: rows without an id, of an app that was killed, are
/// overwritten.
public actor EmbeddingIndex {
    private struct Contents: Codable {
        var embeddingSpace: String
        var width: Int
        var ids: [String]
    }

    private static let chunkRows = 4096
    private static let unsavedRows = 64

    private let folder: URL
    private let rows: FileHandle
    private var contents: Contents
    private var places: [String: Int] = [:]
    private var unsaved = 0

    private var width: Int { contents.width }
    private var rowBytes: Int { 2 * contents.width }

    /// Open an index, or make an empty one.
    ///
    /// - Throws: `MobileCLIPError` if it is damaged, or of another embedding space: search would mean nothing
    public init(folder: URL, embeddingSpace: String, width: Int) throws {
        guard width > 0 else { throw MobileCLIPError("an index needs a width; open a bundle first") }
        let file = folder.appendingPathComponent("rows")
        let ids = folder.appendingPathComponent("ids.json")
        var contents = Contents(embeddingSpace: embeddingSpace, width: width, ids: [])
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            if !FileManager.default.fileExists(atPath: file.path) { try Data().write(to: file) }
            if FileManager.default.fileExists(atPath: ids.path) { contents = try Coders.decoder().decode(Contents.self, from: Data(contentsOf: ids)) }
            rows = try FileHandle(forUpdating: file)
            let size = try rows.seekToEnd()
            guard UInt64(contents.ids.count) * UInt64(2 * contents.width) <= size else { throw MobileCLIPError("") }
        } catch {
            throw MobileCLIPError("the index cannot be read; delete it and index the photos again")
        }
        guard contents.embeddingSpace == embeddingSpace, contents.width == width else {
            throw MobileCLIPError("the index was made with another model; delete it and index the photos again")
        }
        self.folder = folder
        self.contents = contents
        for (place, id) in contents.ids.enumerated() where !id.isEmpty { places[id] = place }
    }

    /// Ids of everything that can be found.
    public var ids: Set<String> { Set(places.keys) }

    /// Add a photo or replace its embedding; `save` makes it last.
    public func put(_ id: String, _ embedding: [Float]) throws {
        guard embedding.count == width, !id.isEmpty else { throw MobileCLIPError("a row of \(embedding.count) values does not fit the index; open its model") }
        var data = Data(capacity: rowBytes)
        for value in embedding {
            let half = Half.bits(of: value)
            data.append(UInt8(truncatingIfNeeded: half))
            data.append(UInt8(truncatingIfNeeded: half >> 8))
        }
        do {
            try rows.seek(toOffset: UInt64(contents.ids.count * rowBytes))
            try rows.write(contentsOf: data)
        } catch {
            throw MobileCLIPError("the index cannot be written; free some storage")
        }
        remove(id)
        places[id] = contents.ids.count
        contents.ids.append(id)
        unsaved += 1
        if unsaved >= EmbeddingIndex.unsavedRows { try save() }
    }

    /// Forget a photo.
    public func remove(_ id: String) {
        guard let place = places.removeValue(forKey: id) else { return }
        contents.ids[place] = ""
        unsaved += 1
    }

    /// Make what was put and removed last.
    public func save() throws {
        do {
            try rows.synchronize()
            try Coders.encoder().encode(contents).write(to: folder.appendingPathComponent("ids.json"), options: .atomic)
            unsaved = 0
        } catch {
            throw MobileCLIPError("the index cannot be written; free some storage")
        }
    }

    /// The photos nearest to a query, best first; equal ones in the order in which they were added.
    public func search(_ query: [Float], top: Int) throws -> [Match] {
        guard query.count == width else { throw MobileCLIPError("a query of \(query.count) values does not fit the index; open its model") }
        var best: [(score: Float, place: Int)] = []
        var first = 0
        while first < contents.ids.count {
            let count = min(EmbeddingIndex.chunkRows, contents.ids.count - first)
            try rows.seek(toOffset: UInt64(first * rowBytes))
            guard let chunk = try rows.read(upToCount: count * rowBytes), chunk.count == count * rowBytes else {
                throw MobileCLIPError("the index cannot be read; delete it and index the photos again")
            }
            let bytes = [UInt8](chunk)
            for i in 0..<count where !contents.ids[first + i].isEmpty {
                var score: Float = 0
                for k in 0..<width {
                    let at = i * rowBytes + 2 * k
                    score += Half.value(of: UInt16(bytes[at]) | UInt16(bytes[at + 1]) << 8) * query[k]
                }
                best.append((score, first + i))
            }
            best.sort { $0.score != $1.score ? $0.score > $1.score : $0.place < $1.place }
            best = Array(best.prefix(max(top, 0)))
            first += count
        }
        return best.map { Match(id: contents.ids[$0.place], score: $0.score) }
    }
}

/// IEEE 754 half precision, rounded to nearest even; Swift's `Float16` is missing on Intel Macs.
enum Half {
    static func value(of bits: UInt16) -> Float {
        let sign = UInt32(bits & 0x8000) << 16
        let exponent = UInt32(bits >> 10 & 0x1F)
        let fraction = UInt32(bits & 0x3FF)
        if exponent == 0x1F { return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13) }
        if exponent != 0 { return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13) }
        return Float(fraction) * 0x1p-24 * (sign == 0 ? 1 : -1)
    }

    static func bits(of value: Float) -> UInt16 {
        let bits = value.bitPattern
        let magnitude = bits & 0x7FFF_FFFF
        let half: UInt32
        switch magnitude {
        case 0x7F80_0001...: half = 0x7E00
        case 0x477F_F000...: half = 0x7C00
        case 0x3880_0000...: half = rounded(magnitude - 112 << 23, dropping: 13)
        case 0x3300_0001...: half = rounded(magnitude & 0x7F_FFFF | 0x80_0000, dropping: 126 - magnitude >> 23)
        default: half = 0
        }
        return UInt16(bits >> 16 & 0x8000 | half)
    }

    private static func rounded(_ bits: UInt32, dropping count: UInt32) -> UInt32 {
        let kept = bits >> count
        let rest = bits & (1 << count - 1)
        let middle = UInt32(1) << (count - 1)
        return rest > middle || (rest == middle && kept & 1 == 1) ? kept + 1 : kept
    }
}
