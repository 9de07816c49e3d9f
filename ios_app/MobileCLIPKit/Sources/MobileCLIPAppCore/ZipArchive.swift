import Foundation
import MobileCLIPCore

enum MobileCLIPErrors {
    static let damagedArchive = MobileCLIPError("the zip file is damaged; copy it again")
    static let unwritable = MobileCLIPError("the bundle cannot be written; free some storage")
}

/// A zip file (PKWARE's APPNOTE), mapped into memory. Nothing in it is trusted: sizes and places are checked, links and encrypted files refused.
struct ZipArchive {
    struct Entry {
        fileprivate let method: Int
        fileprivate let flags: Int
        fileprivate let isLink: Bool
        fileprivate let compressedBytes: Int
        fileprivate let header: Int
        let bytes: Int
    }

    private static let chunkBytes = 1 << 20
    private static let endBytes = 22
    private static let maxCommentBytes = 0xFFFF

    let entries: [String: Entry]
    private let data: Data

    init(_ url: URL) throws {
        guard let data = try? Data(contentsOf: url, options: .alwaysMapped) else { throw MobileCLIPError("\(url.lastPathComponent) cannot be read; copy it again") }
        self.data = data
        guard let end = ZipArchive.end(of: data) else { throw MobileCLIPError("\(url.lastPathComponent) is no zip file; choose a bundle's folder or its zip") }
        let count = try data.number(2, at: end + 10)
        var at = try data.number(4, at: end + 16)
        guard count < 0xFFFF, at < 0xFFFF_FFFF else { throw MobileCLIPError("the zip file is too large for this app; choose the folder instead") }
        var entries: [String: Entry] = [:]
        for _ in 0..<count {
            guard try data.number(4, at: at) == 0x0201_4B50 else { throw MobileCLIPErrors.damagedArchive }
            let nameBytes = try data.number(2, at: at + 28)
            let name = String(decoding: try data.part(at + 46, nameBytes), as: UTF8.self)
            let unixType = try data.number(2, at: at + 40) & 0xF000
            let entry = Entry(
                method: try data.number(2, at: at + 10), flags: try data.number(2, at: at + 8), isLink: unixType == 0xA000,
                compressedBytes: try data.number(4, at: at + 20), header: try data.number(4, at: at + 42), bytes: try data.number(4, at: at + 24))
            guard entries.updateValue(entry, forKey: name) == nil else { throw MobileCLIPErrors.damagedArchive }
            at += 46 + nameBytes + (try data.number(2, at: at + 30)) + (try data.number(2, at: at + 32))
        }
        self.entries = entries
    }

    private static func end(of data: Data) -> Int? {
        var at = data.count - endBytes
        while at >= 0, at >= data.count - endBytes - maxCommentBytes {
            if let signature = try? data.number(4, at: at), signature == 0x0605_4B50 { return at }
            at -= 1
        }
        return nil
    }

    /// Read an entry, piece by piece. Its CRC is not looked at: the manifest has a better one.
    ///
    /// - Parameter limit: bytes that may come out, whatever the entry says of itself
    func read(_ entry: Entry, limit: Int, sink: (Data) throws -> Void) throws {
        guard entry.flags & 1 == 0 else { throw MobileCLIPError("the zip file is encrypted; make one without a password") }
        guard !entry.isLink, entry.bytes <= limit, try data.number(4, at: entry.header) == 0x0403_4B50 else { throw MobileCLIPErrors.damagedArchive }
        let start = entry.header + 30 + (try data.number(2, at: entry.header + 26)) + (try data.number(2, at: entry.header + 28))
        let content = try data.part(start, entry.compressedBytes)
        switch entry.method {
        case 0:
            guard content.count <= limit else { throw MobileCLIPErrors.damagedArchive }
            for from in stride(from: 0, to: content.count, by: ZipArchive.chunkBytes) {
                try sink(content.dropFirst(from).prefix(ZipArchive.chunkBytes))
            }
        case 8: try Inflate.run(content, limit: limit, sink: sink)
        default: throw MobileCLIPError("the zip file is compressed in a way that this app does not know; choose the folder instead")
        }
    }
}

extension Data {
    /// A part; throws where there is none.
    fileprivate func part(_ offset: Int, _ count: Int) throws -> Data {
        guard offset >= 0, count >= 0, offset <= self.count - count else { throw MobileCLIPErrors.damagedArchive }
        return dropFirst(offset).prefix(count)
    }

    /// A little-endian number of a few bytes.
    fileprivate func number(_ bytes: Int, at offset: Int) throws -> Int {
        try part(offset, bytes).reversed().reduce(0) { $0 << 8 | Int($1) }
    }
}
