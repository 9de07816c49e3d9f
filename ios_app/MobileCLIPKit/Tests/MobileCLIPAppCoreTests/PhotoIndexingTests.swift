import Foundation
import MobileCLIPCore
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPAppCore

private struct FakeLibrary: PhotoLibrary {
    var all: [LibraryPhoto]
    var unreadable: Set<String> = []
    var error: MobileCLIPError?

    func photos() async throws -> [LibraryPhoto] {
        if let error { throw error }
        return all
    }

    func picture(_ photo: LibraryPhoto, shortestSide: Int) async -> Picture? {
        unreadable.contains(photo.id) ? nil : try? Picture(width: 1, height: 1, rgb: [UInt8(truncatingIfNeeded: photo.modified), 0, 0])
    }
}

private actor Log {
    var seen: [IndexingProgress] = []
    var embedded = 0

    func add(_ progress: IndexingProgress) { seen.append(progress) }

    func count() -> Int {
        embedded += 1
        return embedded
    }
}

final class PhotoIndexingTests: XCTestCase {
    private var scratch = try? Scratch()

    private func index() throws -> EmbeddingIndex {
        let folder = (scratch?.url ?? FileManager.default.temporaryDirectory).appendingPathComponent("index")
        return try EmbeddingIndex(folder: folder, embeddingSpace: "1", width: 2)
    }

    private func photos(_ count: Int, modified: Int = 1) -> [LibraryPhoto] { (0..<count).map { LibraryPhoto(id: "photo \($0)", modified: modified) } }

    private func job(_ library: FakeLibrary, _ index: EmbeddingIndex, embed: @escaping @Sendable (Picture) async throws -> [Float] = { [Float($0.rgb[0]), 1] }) -> IndexingJob {
        IndexingJob(library: library, index: index, shortestSide: 64, embed: embed)
    }

    func testTheIndexFollowsTheLibrary() async throws {
        let index = try index()
        let log = Log()
        var library = FakeLibrary(all: photos(20))
        var end = try await job(library, index).run { await log.add($0) }
        XCTAssertEqual(end, IndexingProgress(done: 20, total: 20))
        let seen = await log.seen
        XCTAssertEqual(seen.first, IndexingProgress(done: 0, total: 20))
        XCTAssertEqual(seen.map(\.done), seen.map(\.done).sorted())
        library.all = photos(3) + [LibraryPhoto(id: "photo 3", modified: 2), LibraryPhoto(id: "new", modified: 9)]
        let counter = Log()
        end = try await job(library, index) { _ in
            _ = await counter.count()
            return [9, 9]
        }.run { _ in }
        XCTAssertEqual(end, IndexingProgress(done: 5, total: 5))
        let embedded = await counter.embedded
        XCTAssertEqual(embedded, 2) // the edited one and the new one
        let ids = await index.ids
        XCTAssertEqual(ids, Set(library.all.map(\.key)))
        let match = try await index.search([1, 1], top: 1)
        XCTAssertEqual(match.first.flatMap { LibraryPhoto(key: $0.id) }, LibraryPhoto(id: "photo 3", modified: 2))
    }

    func testItGoesOnAfterAnInterruption() async throws {
        let library = FakeLibrary(all: photos(200))
        let counter = Log()
        let first = try index()
        let interrupted = job(library, first) { _ in
            if await counter.count() == 90 { withUnsafeCurrentTask { $0?.cancel() } }
            return [1, 1]
        }
        let task = Task { try await interrupted.run { _ in } }
        let result = await task.result
        XCTAssertThrowsError(try result.get()) { XCTAssertTrue($0 is CancellationError) }
        let second = try index() // as after a new start
        let kept = await second.count
        XCTAssertEqual(kept, 90)
        let end = try await job(library, second).run { _ in }
        XCTAssertEqual(end, IndexingProgress(done: 200, total: 200))
        let count = await second.count
        XCTAssertEqual(count, 200)
    }

    func testPhotosThatCannotBeReadAreTriedAgain() async throws {
        let index = try index()
        var library = FakeLibrary(all: photos(10), unreadable: ["photo 3", "photo 4"])
        var end = try await job(library, index).run { _ in }
        XCTAssertEqual(end, IndexingProgress(done: 10, total: 10, skipped: 2))
        library.unreadable = []
        end = try await job(library, index).run { _ in }
        XCTAssertEqual(end.skipped, 0)
        let count = await index.count
        XCTAssertEqual(count, 10)
    }

    func testOneOddPhotoIsSkippedAndManyEndIt() async throws {
        let index = try index()
        let counter = Log()
        let end = try await job(FakeLibrary(all: photos(10)), index) { _ in
            if await counter.count() == 2 { throw MobileCLIPError("odd") }
            return [1, 1]
        }.run { _ in }
        XCTAssertEqual(end.skipped, 1)
        do {
            _ = try await job(FakeLibrary(all: photos(30, modified: 5)), index) { _ in throw MobileCLIPError("broken") }.run { _ in }
            XCTFail("it went on")
        } catch { XCTAssertEqual(error as? MobileCLIPError, MobileCLIPError("broken")) }
    }

    func testPhotosOfALibraryThatMayNotBeSeenAreNotForgotten() async throws {
        let index = try index()
        _ = try await job(FakeLibrary(all: photos(3)), index).run { _ in }
        do {
            _ = try await job(FakeLibrary(all: [], error: MobileCLIPError("no access")), index).run { _ in }
            XCTFail("it went on")
        } catch { XCTAssertEqual(error as? MobileCLIPError, MobileCLIPError("no access")) }
        let count = await index.count
        XCTAssertEqual(count, 3)
    }

    /// Prints what a library of 100,000 photos costs beside decoding and the model; a smaller one where code is not optimised.
    func testALargeLibraryIsIndexedAndLookedThroughAgain() async throws {
        #if DEBUG
        let count = 5000
        #else
        let count = 100_000
        #endif
        let index = try index()
        let library = FakeLibrary(all: photos(count))
        for added in [count, 0] {
            let start = Date()
            let end = try await job(library, index).run { _ in }
            XCTAssertEqual(end, IndexingProgress(done: count, total: count))
            print("LIBRARY of \(count) photos, \(added) new: \(Date().timeIntervalSince(start)) s")
        }
    }

    func testItWaitsWhileThePhoneIsHot() async throws {
        let index = try index()
        let log = Log()
        let waits = Waits(3)
        let job = IndexingJob(
            library: FakeLibrary(all: photos(2)), index: index, shortestSide: 64, embed: { _ in [1, 1] }, hold: { waits.next() ? "the phone is hot" : nil }, sleep: { _ in })
        let end = try await job.run { await log.add($0) }
        XCTAssertEqual(end, IndexingProgress(done: 2, total: 2))
        let waiting = await log.seen.filter { $0.waiting == "the phone is hot" }.count
        XCTAssertEqual(waiting, 3)
    }

    func testKeysAreTakenApart() {
        XCTAssertEqual(LibraryPhoto(key: "12 a b"), LibraryPhoto(id: "a b", modified: 12))
        XCTAssertNil(LibraryPhoto(key: "a"))
        XCTAssertNil(LibraryPhoto(key: "a b"))
    }
}

private final class Waits: @unchecked Sendable {
    private let lock = NSLock()
    private var left: Int

    init(_ count: Int) {
        left = count
    }

    func next() -> Bool {
        lock.withLock {
            left -= 1
            return left >= 0
        }
    }
}
