import Foundation
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPCore

final class IndexTests: XCTestCase {
    private var scratch = try? Scratch()
    private let space = String(repeating: "a", count: 64)

    private var folder: URL { (scratch?.url ?? FileManager.default.temporaryDirectory).appendingPathComponent("index") }

    private func open(_ space: String? = nil, width: Int = 2) throws -> EmbeddingIndex {
        try EmbeddingIndex(folder: folder, embeddingSpace: space ?? self.space, width: width)
    }

    private func file(_ name: String) throws -> URL {
        let found = try FileManager.default.contentsOfDirectory(atPath: folder.path).filter { $0.hasPrefix(name) }
        XCTAssertEqual(found.count, 1)
        return folder.appendingPathComponent(found.first ?? "")
    }

    private func append(_ data: Data, to name: String) throws {
        let handle = try FileHandle(forWritingTo: file(name))
        try handle.seekToEnd()
        try handle.write(contentsOf: data)
        try handle.close()
    }

    private func refuses(_ text: String, _ line: UInt = #line, _ action: () throws -> Void) {
        XCTAssertThrowsError(try action(), line: line) { XCTAssertTrue("\($0)".contains(text), "\($0)", line: line) }
    }

    func testWhatWasPutIsThereAgain() async throws {
        var index = try open()
        try await index.put("ü 7", [1, 0])
        try await index.put("9", [0, 1])
        try await index.put("ü 7", [0, -1])
        try await index.save()
        index = try open()
        var ids = await index.ids
        XCTAssertEqual(ids, ["ü 7", "9"])
        var found = try await index.search([0, 1], top: 5)
        XCTAssertEqual(found, [Match(id: "9", score: 1), Match(id: "ü 7", score: -1)])
        await index.remove("9")
        await index.remove("9")
        await index.remove("nobody")
        try await index.save()
        index = try open()
        let before = try Data(contentsOf: file("rows")).count
        try await index.compact()
        XCTAssertLessThan(try Data(contentsOf: file("rows")).count, before)
        for _ in 0..<2 {
            found = try await index.search([0, 1], top: 5)
            XCTAssertEqual(found, [Match(id: "ü 7", score: -1)])
            ids = await index.ids
            XCTAssertEqual(ids, ["ü 7"])
            index = try open()
        }
        try await index.put("new", [1, 1])
        found = try await index.search([1, 1], top: 1)
        XCTAssertEqual(found.map(\.id), ["new"])
    }

    func testWhatAnAppThatWasKilledHadHalfWrittenIsCutOff() async throws {
        var index = try open()
        try await index.put("1", [1, 0])
        try await index.save()
        try append(Data([1, 2, 3, 4, 5]), to: "rows") // a row and a quarter without a line
        index = try open()
        try await index.put("2", [0, 1])
        try await index.save()
        try append(Data("+3".utf8), to: "ids") // half a line
        index = try open()
        let found = try await index.search([0, 1], top: 5)
        XCTAssertEqual(found, [Match(id: "2", score: 1), Match(id: "1", score: 0)])
        try await index.put("unsaved", [1, 1])
        let ids = try await open().ids
        XCTAssertEqual(ids, ["1", "2"])
    }

    func testFilesThatAnAppHadNoTimeToRemoveGo() async throws {
        let index = try open()
        try await index.put("1", [1, 0])
        try await index.save()
        for name in ["rows-1", "ids-1", "rows-7"] { try Data("x".utf8).write(to: folder.appendingPathComponent(name)) }
        let found = try await open().search([1, 0], top: 5)
        XCTAssertEqual(found, [Match(id: "1", score: 1)])
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted(), ["about.json", "ids-0", "rows-0"])
    }

    func testADamagedIndexIsRefused() async throws {
        let index = try open()
        try await index.put("1", [1, 0])
        try await index.save()
        let damage: [(String, Data)] = [
            ("rows", Data()), ("ids", Data("?1\n".utf8)), ("ids", Data("+\n".utf8)), ("ids", Data([0x2B, 0xFF, 0x0A])),
            ("about", Data("{".utf8)), ("about", Data(#"{"version":2,"embedding_space":"","width":2,"generation":0}"#.utf8)),
        ]
        for (name, data) in damage {
            let place = try file(name)
            let good = try Data(contentsOf: place)
            try data.write(to: place)
            refuses("delete it and index the photos again") { _ = try open() }
            try good.write(to: place)
        }
        let count = try await open().count
        XCTAssertEqual(count, 1)
    }

    func testAnIndexOfAnotherModelIsNotSearched() async throws {
        try await open().save()
        refuses("made with another model") { _ = try open(String(repeating: "b", count: 64)) }
        refuses("made with another model") { _ = try open(width: 3) }
        refuses("a width") { _ = try open(width: 0) }
    }

    func testRowsAndQueriesMustFit() async throws {
        let index = try open()
        for (id, row) in [("1", [1]), ("1", [.nan, 0]), ("", [1, 0]), ("a\nb", [1, 0])] as [(String, [Float])] {
            do {
                try await index.put(id, row)
                XCTFail("\(id) \(row)")
            } catch {}
        }
        for query in [[1], [Float.infinity, 0]] {
            do {
                _ = try await index.search(query, top: 1)
                XCTFail("\(query)")
            } catch {}
        }
        let empty = try await index.search([1, 0], top: 3)
        XCTAssertEqual(empty, [])
    }

    func testSearchCanBeCancelled() async throws {
        let index = try open()
        try await index.put("1", [1, 0])
        let task = Task {
            while !Task.isCancelled { await Task.yield() }
            return try await index.search([1, 0], top: 1)
        }
        task.cancel()
        let result = await task.result
        XCTAssertThrowsError(try result.get()) { XCTAssertTrue($0 is CancellationError) }
    }

    /// 100,000 rows; prints what they cost. Optimised code has them as wide as MobileCLIP's.
    func testAHundredThousandPhotosAreSearched() async throws {
        #if DEBUG
        let width = 19
        #else
        let width = 512
        #endif
        let count = 100_000
        let index = try open(width: width)
        var row = [Float](repeating: 0, count: width)
        let began = Date()
        for i in 0..<count {
            row[0] = Float(i % 1000) / 1000
            row[width - 1] = 0.25
            try await index.put("\(i) 0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0/L0/001", row)
        }
        try await index.save()
        let built = Date()
        let before = try privateMemory()
        let again = try open(width: width)
        let opened = Date()
        let memory = try privateMemory()
        var query = [Float](repeating: 0, count: width)
        query[0] = 1
        var times: [TimeInterval] = []
        for _ in 0..<5 {
            let start = Date()
            let found = try await again.search(query, top: 3)
            times.append(Date().timeIntervalSince(start))
            XCTAssertEqual(found.map { $0.id.prefix { $0 != " " } }, ["999", "1999", "2999"])
        }
        let grown = try privateMemory() - memory
        XCTAssertLessThan(grown, 20 << 20, "the rows are mapped and not read")
        print("INDEX rows \(count) x \(width): built in \(built.timeIntervalSince(began)) s, opened in \(opened.timeIntervalSince(built)) s, "
            + "searched in \(times.map { Int(1000 * $0) }) ms; "
            + "the open index takes \((memory - before) >> 10) KiB of memory, its search \(grown >> 10) KiB more")
    }

    /// Memory of this process that no file stands behind, in bytes; 0 where the system does not tell.
    private func privateMemory() throws -> Int {
        guard let status = try? String(contentsOfFile: "/proc/self/status", encoding: .utf8) else { return 0 }
        let line = status.split(separator: "\n").first { $0.hasPrefix("RssAnon:") } ?? ""
        return (line.split(separator: " ").compactMap { Int($0) }.first ?? 0) << 10
    }

    func testHalfPrecisionRoundsToEven() {
        let pairs: [(Float, UInt16)] = [
            (0, 0x0000), (-0.0, 0x8000), (1, 0x3C00), (65504, 0x7BFF), (65520, 0x7C00), (1e-8, 0x0000), (5.9604645e-8, 0x0001), (6.1035156e-5, 0x0400),
            (1.00048828125, 0x3C00), (1.0014648, 0x3C02), (0.333, 0x3554), (.nan, 0x7E00),
        ]
        for (value, half) in pairs { XCTAssertEqual(Half.bits(of: value), half, "\(value)") }
        for bits in 0...UInt16.max where !Half.value(of: bits).isNaN { XCTAssertEqual(Half.bits(of: Half.value(of: bits)), bits) }
    }

    func testAllHalvesHaveTheirValueInADotProduct() {
        let finite = (0...UInt16.max).filter { Half.value(of: $0).isFinite }
        for width in [16, 3, 21] {
            for at in stride(from: 0, to: finite.count - width, by: width) {
                let halves = Array(finite[at..<at + width])
                for one in 0..<width {
                    let query = HalfQuery((0..<width).map { $0 == one ? 1 : 0 })
                    let found = halves.withUnsafeBytes { bytes in bytes.baseAddress.map { query.dot($0) } }
                    XCTAssertEqual(found, Half.value(of: halves[one]))
                }
            }
        }
    }
}
