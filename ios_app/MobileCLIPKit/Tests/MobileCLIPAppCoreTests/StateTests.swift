import Foundation
import MobileCLIPCore
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPAppCore

/// A library that hands out pictures only as the test allows it.
private final class Gate: PhotoLibrary, @unchecked Sendable {
    private let lock = NSLock()
    private var left: Int
    let all: [LibraryPhoto]

    init(_ count: Int, open: Int) {
        left = open
        all = (0..<count).map { LibraryPhoto(id: "\($0)", modified: $0) }
    }

    func open(_ count: Int) { lock.withLock { left += count } }

    private func pass() -> Bool {
        lock.withLock {
            left -= 1
            return left >= 0
        }
    }

    func photos() async throws -> [LibraryPhoto] { all }

    func picture(_ photo: LibraryPhoto, shortestSide: Int) async -> Picture? {
        while !pass(), !Task.isCancelled { try? await Task.sleep(nanoseconds: 1_000_000) }
        return try? Picture(width: 1, height: 1, rgb: [UInt8(truncatingIfNeeded: photo.modified), 100, 0])
    }
}

@MainActor
final class StateTests: XCTestCase, @unchecked Sendable { // its methods are the main actor's
    private var scratch = try? Scratch()

    private func folder(_ name: String) throws -> URL {
        let folder = (scratch?.url ?? FileManager.default.temporaryDirectory).appendingPathComponent(name)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        return folder
    }

    private func fixture(_ name: String, change: (inout BundleFixture) -> Void = { _ in }) throws -> BundleFixture {
        guard let tokenizer = try BundleFixture.realTokenizer() else { throw XCTSkip("MOBILECLIP_TOKENIZER is not set") }
        var fixture = BundleFixture()
        (fixture.name, fixture.tokenizer) = (name, tokenizer)
        change(&fixture)
        return fixture
    }

    private func service() throws -> EncoderService {
        let bundle = try ModelBundle(folder: fixture("searched").write(in: folder("bundles")), targets: [.coreml])
        return try EncoderService(bundle: bundle) { _, artifact in FakeSession(artifact) }
    }

    private func until(_ condition: () -> Bool) async throws {
        for _ in 0..<5000 where !condition() { try await Task.sleep(nanoseconds: 2_000_000) }
        XCTAssertTrue(condition())
    }

    func testTheLibraryIsIndexedAcrossTheBackground() async throws {
        let service = try service()
        let library = Gate(40, open: 10)
        let search = PhotoSearch(library: library, folder: try folder("indexes"))
        search.start(service) // no index is open yet
        XCTAssertFalse(search.isIndexing)
        await search.open(service.bundle.manifest)
        search.start(service)
        XCTAssertTrue(search.isIndexing)
        try await until { search.progress.done >= 9 }
        await search.open(service.bundle.manifest) // the screen appears again: nothing changes
        XCTAssertTrue(search.isIndexing)
        await search.pause()
        XCTAssertFalse(search.isIndexing)
        XCTAssertGreaterThanOrEqual(search.indexed, 9)
        library.open(100)
        await search.resume(service)
        XCTAssertTrue(search.isIndexing)
        await search.finished()
        XCTAssertEqual(search.indexed, 40)
        XCTAssertEqual(search.progress, IndexingProgress(done: 40, total: 40))
        XCTAssertEqual(search.problem, "")
        await search.search("a cat", service)
        XCTAssertEqual(search.results.count, 40)
        await search.search("  ", service)
        XCTAssertEqual(search.results, [])
        await search.resume(service) // nothing was paused
        XCTAssertFalse(search.isIndexing)
    }

    func testTheIndexIsThatOfTheModelWhoseScreenIsOpen() async throws {
        let service = try service()
        let other = try ModelBundle(folder: fixture("other") { $0.space = String(repeating: "b", count: 64) }.write(in: folder("bundles")), targets: [.coreml])
        let search = PhotoSearch(library: Gate(40, open: 10), folder: try folder("indexes"))
        await search.open(service.bundle.manifest)
        search.start(service)
        try await until { search.progress.done >= 9 }
        let opening = Task { await search.open(other.manifest) }
        await Task.yield() // it waits for the job to end
        await search.open(service.bundle.manifest) // the user has changed their mind
        await opening.value
        XCTAssertGreaterThanOrEqual(search.indexed, 9)
        await search.open(other.manifest)
        XCTAssertEqual(search.indexed, 0)
        search.start(service) // of a screen that is gone
        XCTAssertFalse(search.isIndexing)
        await search.search("a cat", service)
        XCTAssertEqual(search.problem, "")
    }

    func testWhatTheUserStoppedDoesNotGoOn() async throws {
        let service = try service()
        let search = PhotoSearch(library: Gate(40, open: 10), folder: try folder("indexes"))
        await search.open(service.bundle.manifest)
        search.start(service)
        try await until { search.progress.done >= 9 }
        search.stop("the phone is short of memory")
        await search.finished()
        XCTAssertEqual(search.problem, "the phone is short of memory")
        await search.resume(service)
        XCTAssertFalse(search.isIndexing)
    }

    func testADamagedIndexIsDeletedOnDemand() async throws {
        let service = try service()
        let indexes = try folder("indexes")
        let library = Gate(3, open: 3)
        var search = PhotoSearch(library: library, folder: indexes)
        await search.open(service.bundle.manifest)
        search.start(service)
        await search.finished()
        let about = indexes.appendingPathComponent("index-aaaaaaaaaaaaaaaa/about.json")
        try Data("damaged".utf8).write(to: about)
        search = PhotoSearch(library: library, folder: indexes)
        await search.open(service.bundle.manifest)
        XCTAssertTrue(search.isDamaged)
        XCTAssertEqual(search.problem, "the index is damaged; delete it and index the photos again")
        await search.deleteIndex(service.bundle.manifest)
        XCTAssertFalse(search.isDamaged)
        XCTAssertEqual(search.indexed, 0)
    }

    private func choice(_ documents: URL, _ defaults: UserDefaults, fails: Set<ComputeUnit> = []) -> BundleChoice {
        BundleChoice(store: BundleStore(folder: documents), defaults: defaults) { _, unit in
            if fails.contains(unit) { throw MobileCLIPError("CoreML refuses \(unit.rawValue)") }
            return { _, artifact in FakeSession(artifact) }
        }
    }

    func testABundleIsChosenAndKept() async throws {
        let documents = try folder("Documents")
        let name = "org.mobileclip.tests.\(UUID().uuidString)"
        let defaults = try XCTUnwrap(UserDefaults(suiteName: name))
        defer { defaults.removePersistentDomain(forName: name) }
        let first = choice(documents, defaults, fails: [.cpuOnly])
        first.refresh()
        guard case .empty = first.stage else { return XCTFail("\(first.stage)") }
        await first.add(try fixture("one").write(in: folder("outside")))
        await first.opened()
        XCTAssertEqual(first.ready?.name, "one")
        XCTAssertEqual(first.ready?.reproduces, true)
        await first.add(try fixture("two") { $0.error = 0.5 }.write(in: folder("outside")))
        await first.opened()
        XCTAssertEqual(first.ready?.name, "two")
        XCTAssertEqual(first.ready?.reproduces, false)
        first.unit = .cpuOnly
        await first.opened()
        guard case .failed("CoreML refuses cpuOnly") = first.stage else { return XCTFail("\(first.stage)") }
        first.unit = .cpuAndGPU
        first.unit = .all // before the other is there
        await first.opened()
        XCTAssertEqual(first.ready?.name, "two")
        await first.giveMemoryBack()
        first.unit = .cpuAndGPU
        await first.opened()
        let second = choice(documents, defaults) // as after a new start
        XCTAssertEqual(second.unit, .cpuAndGPU)
        second.refresh()
        await second.opened()
        XCTAssertEqual(second.ready?.name, "two")
        second.remove("two")
        await second.opened()
        XCTAssertEqual(second.ready?.name, "one")
        XCTAssertEqual(second.names, ["one"])
        second.remove("one")
        guard case .empty = second.stage else { return XCTFail("\(second.stage)") }
        await second.add(documents.appendingPathComponent("nothing"))
        XCTAssertEqual(second.remark, "nothing is not there any more; choose it again")
    }
}
