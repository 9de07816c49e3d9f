import Foundation
import MobileCLIPCore
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPAppCore

/// Zip files for tests; what is deflated comes from the system's gzip.
enum ZipWriter {
    static func write(_ files: [(name: String, data: Data)], method: Int, flags: Int = 0, attributes: Int = 0, change: (inout Data) -> Void = { _ in }) throws -> Data {
        var body = Data()
        var directory = Data()
        for (name, data) in files {
            let content = method == 8 ? try deflated(data, level: 6) : data
            let sizes = number(content.count, 4) + number(data.count, 4)
            let about = number(20, 2) + number(flags, 2) + number(method, 2) + number(0, 8)
            directory += number(0x0201_4B50, 4) + number(0x314, 2) + about + sizes + number(name.utf8.count, 2) + number(0, 8) + number(attributes << 16, 4)
            directory += number(body.count, 4) + Data(name.utf8)
            body += number(0x0403_4B50, 4) + about + sizes + number(name.utf8.count, 2) + number(0, 2) + Data(name.utf8) + content
        }
        let end = number(0x0605_4B50, 4) + number(0, 4) + number(files.count, 2) + number(files.count, 2) + number(directory.count, 4) + number(body.count, 4)
        var all = body + directory + end + number(7, 2) + Data("comment".utf8)
        change(&all)
        return all
    }

    static func number(_ value: Int, _ bytes: Int) -> Data { Data((0..<bytes).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }) }

    static func deflated(_ data: Data, level: Int) throws -> Data {
        let scratch = try Scratch()
        let (from, to) = (scratch.url.appendingPathComponent("from"), scratch.url.appendingPathComponent("to"))
        try data.write(to: from)
        try Data().write(to: to)
        let gzip = Process()
        gzip.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        gzip.arguments = ["gzip", "-n", "-c", "-\(level)", from.path]
        gzip.standardOutput = try FileHandle(forWritingTo: to)
        try gzip.run()
        gzip.waitUntilExit()
        return Data(try Data(contentsOf: to).dropFirst(10).dropLast(8))
    }
}

final class ZipTests: XCTestCase {
    private func inflated(_ data: Data, limit: Int = 1 << 24) throws -> Data {
        var all = Data()
        try Inflate.run(data, limit: limit) { all += $0 }
        return all
    }

    private func refuses(_ text: String, _ line: UInt = #line, _ action: () throws -> Void) {
        XCTAssertThrowsError(try action(), line: line) { XCTAssertTrue(($0 as? MobileCLIPError)?.description.contains(text) == true, "\($0)", line: line) }
    }

    private var samples: [Data] {
        var generator = SystemRandomNumberGenerator()
        let noise = Data((0..<100_000).map { _ in UInt8.random(in: 0...255, using: &generator) })
        let words = Data((0..<80_000).flatMap { Array("\($0 % 977) photos of a cat, ".utf8) })
        return [Data(), Data("a".utf8), noise, words, Data(count: 700_000), noise.prefix(40_000) + words + noise.prefix(40_000)]
    }

    func testWhatGzipMadeIsInflated() throws {
        for data in samples {
            for level in [1, 6, 9] { XCTAssertEqual(try inflated(ZipWriter.deflated(data, level: level)), data) }
        }
    }

    func testWhatIsCutOffOrLargerIsRefused() throws {
        let data = samples[3].prefix(200_000)
        let deflated = try ZipWriter.deflated(Data(data), level: 6)
        for count in [0, 1, 10, deflated.count / 2, deflated.count - 1] { refuses("damaged") { _ = try inflated(Data(deflated.prefix(count))) } }
        refuses("damaged") { _ = try inflated(deflated, limit: data.count - 1) }
        XCTAssertEqual(try inflated(deflated, limit: data.count).count, data.count)
    }

    /// Nothing may trap, whatever the bytes are.
    func testBytesThatWereChangedAreSurvived() throws {
        let deflated = try ZipWriter.deflated(Data(samples[3].prefix(5000)), level: 9)
        for place in deflated.indices {
            var changed = deflated
            changed[place] ^= UInt8(1 << (place % 8))
            _ = try? inflated(changed, limit: 1 << 16)
        }
        for bad in [[0x07], [0x01, 1, 0, 0, 0], [0x05, 0xFF, 0xFF], [0x03, 0x02]] as [[UInt8]] { XCTAssertThrowsError(try inflated(Data(bad))) }
    }

    func testEntriesAreRead() throws {
        let scratch = try Scratch()
        let url = scratch.url.appendingPathComponent("a.zip")
        let files = [("empty", Data()), ("ü/words", samples[3])]
        for method in [0, 8] {
            try ZipWriter.write(files, method: method).write(to: url)
            let archive = try ZipArchive(url)
            XCTAssertEqual(archive.entries.count, 2)
            for (name, data) in files {
                var all = Data()
                try archive.read(try XCTUnwrap(archive.entries[name]), limit: data.count) { all += $0 }
                XCTAssertEqual(all, data)
            }
            refuses("damaged") { try archive.read(try XCTUnwrap(archive.entries["ü/words"]), limit: 10) { _ in } }
        }
    }

    func testWhatIsNoPlainZipIsRefused() throws {
        let scratch = try Scratch()
        let url = scratch.url.appendingPathComponent("a.zip")
        let file = [("a", Data("abc".utf8))]
        func read(_ data: Data) throws {
            try data.write(to: url)
            let archive = try ZipArchive(url)
            for entry in archive.entries.values { try archive.read(entry, limit: 100) { _ in } }
        }
        try read(ZipWriter.write(file, method: 0))
        refuses("encrypted") { try read(ZipWriter.write(file, method: 0, flags: 1)) }
        refuses("does not know") { try read(ZipWriter.write(file, method: 12)) }
        refuses("damaged") { try read(ZipWriter.write(file, method: 0, attributes: 0o120777)) } // a link
        refuses("damaged") { try read(ZipWriter.write(file + file, method: 0)) } // twice the same name
        refuses("too large") { try read(ZipWriter.write(file, method: 0) { $0.replaceSubrange($0.count - 19..<$0.count - 17, with: [0xFF, 0xFF]) }) }
        refuses("no zip") { try read(Data()) }
        refuses("cannot be read") { _ = try ZipArchive(scratch.url.appendingPathComponent("nothing")) }
        let whole = try ZipWriter.write(file, method: 0)
        for place in whole.indices {
            var changed = whole
            changed[place] ^= 0xFF
            try? read(changed)
            try? read(Data(whole.prefix(place)))
        }
    }
}
