import Foundation
import MobileCLIPCore
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPAppCore

final class BundleStoreTests: XCTestCase {
    private var scratch = try? Scratch()

    private var documents: URL { (scratch?.url ?? FileManager.default.temporaryDirectory).appendingPathComponent("Documents") }
    private var outside: URL { (scratch?.url ?? FileManager.default.temporaryDirectory).appendingPathComponent("outside") }

    override func setUpWithError() throws {
        for folder in [documents, outside] { try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true) }
    }

    private func store(maxBytes: Int = 1 << 20, free: Int = 1 << 30) -> BundleStore { BundleStore(folder: documents, maxBytes: maxBytes, freeBytes: { free }) }

    /// Everything in the documents, hidden files too.
    private func left() throws -> [String] { try FileManager.default.contentsOfDirectory(atPath: documents.path).sorted() }

    private func refuses(_ text: String, _ line: UInt = #line, _ action: () throws -> Void) {
        XCTAssertThrowsError(try action(), line: line) { error in
            let description = (error as? MobileCLIPError)?.description ?? ""
            XCTAssertTrue(!description.isEmpty && (text.isEmpty || description.contains(text)), "\(error)", line: line)
        }
    }

    func testAFolderIsAddedOpenedAndRemoved() throws {
        let source = try BundleFixture().write(in: outside)
        try Data(count: 1000).write(to: source.appendingPathComponent("not of the bundle"))
        let store = store()
        XCTAssertEqual(try store.add(source), "fixture")
        XCTAssertEqual(store.names(), ["fixture"])
        XCTAssertEqual(try store.open("fixture").manifest.model.name, "fixture")
        let copied = try FileManager.default.subpathsOfDirectory(atPath: documents.appendingPathComponent("fixture").path)
        XCTAssertFalse(copied.contains("not of the bundle"))
        XCTAssertFalse(copied.contains("reference.safetensors")) // the app has no use for it
        XCTAssertEqual(try store.add(source), "fixture") // the same again
        var other = BundleFixture()
        other.weights = Data("others".utf8)
        try FileManager.default.removeItem(at: source)
        XCTAssertEqual(try store.add(other.write(in: outside)), "fixture-2")
        try store.remove("fixture")
        XCTAssertEqual(store.names(), ["fixture-2"])
        try store.remove("nobody")
        refuses("add it again") { _ = try store.open("fixture") }
        refuses("add it again") { _ = try store.open("../outside/fixture") }
    }

    func testAZipIsAdded() throws {
        var fixture = BundleFixture()
        fixture.weights = Data((0..<300_000).map { UInt8(truncatingIfNeeded: $0 / 7 * $0) })
        for (root, method) in [("", 0), ("my bundle/", 8), ("my bundle/", 0)] {
            try? FileManager.default.removeItem(at: documents)
            try setUpWithError()
            let zip = outside.appendingPathComponent("nano.zip")
            var files = fixture.files()
            files["../escape"] = Data("x".utf8)
            files["__MACOSX/manifest.json"] = Data("x".utf8)
            try ZipWriter.write(files.map { (root + $0.key, $0.value) }, method: method).write(to: zip)
            XCTAssertEqual(try store().add(zip), root.isEmpty ? "nano" : "my bundle")
            XCTAssertEqual(try store().open(root.isEmpty ? "nano" : "my bundle").manifest.embedDim, BundleFixture.width)
            XCTAssertEqual(try left().count, 1)
        }
    }

    /// One that the toolkit has exported: `MOBILECLIP_BUNDLE` names a folder with `bundle.zip` and, in `expected.json`, captions and their rows of ids.
    func testABundleOfTheToolkitIsAdded() throws {
        guard let path = ProcessInfo.processInfo.environment["MOBILECLIP_BUNDLE"] else { throw XCTSkip("MOBILECLIP_BUNDLE is not set") }
        struct Expected: Decodable {
            let captions: [String]
            let ids: [[Int32]]
        }
        let given = URL(fileURLWithPath: path)
        let expected = try JSONDecoder().decode(Expected.self, from: Data(contentsOf: given.appendingPathComponent("expected.json")))
        let store = BundleStore(folder: documents)
        let bundle = try store.open(try store.add(given.appendingPathComponent("bundle.zip")))
        let tokenizer = try Tokenizer(contentsOf: bundle.url(bundle.manifest.tokenizer.file.path))
        XCTAssertEqual(expected.captions.map { tokenizer.encode($0) }, expected.ids)
        let plan = try LocalBench(bundle: bundle, provider: "all")
        let host = FakeHost()
        host.loadsFail = [.image, .text]
        XCTAssertEqual(try plan.run(on: host) { _ in }.compactMap(\.error).count, 2)
        XCTAssertEqual(host.loads.map { $0.split(separator: "/").last ?? "" }, ["image.mlpackage", "text.mlpackage"])
        let golden = try SafeTensors(contentsOf: bundle.url(bundle.manifest.golden.path))
        for tower in Tower.allCases {
            let artifact = try XCTUnwrap(bundle.manifest.artifact(.coreml, tower))
            let input = try golden.tensor("\(tower.rawValue).input")
            XCTAssertEqual(Array(input.shape.dropFirst()), Array(artifact.input.shape.dropFirst()))
            XCTAssertEqual(try golden.tensor("\(tower.rawValue).embedding").shape, [input.shape[0], bundle.manifest.embedDim])
            XCTAssertTrue(FileManager.default.fileExists(atPath: bundle.url(artifact.path).appendingPathComponent("Manifest.json").path))
        }
    }

    func testADamagedBundleIsRefusedAndNothingIsLeft() throws {
        let fixture = BundleFixture()
        for path in fixture.files().keys where path != "reference.safetensors" {
            let source = try fixture.write(in: outside)
            let file = source.appendingPathComponent(path)
            var data = try Data(contentsOf: file)
            data[data.count / 2] ^= 1
            try data.write(to: file)
            refuses("") { _ = try store().add(source) }
            try data.dropLast().write(to: file)
            refuses("") { _ = try store().add(source) }
            try (data + data).write(to: file)
            refuses("") { _ = try store().add(source) }
            try FileManager.default.removeItem(at: file)
            refuses("") { _ = try store().add(source) }
            try FileManager.default.removeItem(at: source)
            XCTAssertEqual(try left(), [], path)
        }
        refuses("is not there any more") { _ = try store().add(outside.appendingPathComponent("nothing")) }
        refuses("is no bundle") { _ = try store().add(outside) }
        let text = outside.appendingPathComponent("text.zip")
        try Data("no zip".utf8).write(to: text)
        refuses("is no zip file") { _ = try store().add(text) }
        try ZipWriter.write([("readme", Data())], method: 0).write(to: text)
        refuses("holds no bundle") { _ = try store().add(text) }
        XCTAssertEqual(try left(), [])
    }

    func testWhatDoesNotFitIsRefusedBeforeItIsCopied() throws {
        let source = try BundleFixture().write(in: outside)
        refuses("export a smaller model") { _ = try store(maxBytes: 1000).add(source) }
        refuses("free some storage") { _ = try store(free: 1000).add(source) }
        XCTAssertEqual(try left(), [])
    }

    func testLinksAreNotFollowed() throws {
        let source = try BundleFixture().write(in: outside)
        let file = source.appendingPathComponent("golden.safetensors")
        try FileManager.default.moveItem(at: file, to: outside.appendingPathComponent("elsewhere"))
        try FileManager.default.createSymbolicLink(at: file, withDestinationURL: outside.appendingPathComponent("elsewhere"))
        refuses("leads out of the bundle") { _ = try store().add(source) }
    }

    func testNamesThatMeanSomethingElseAreNotTaken() throws {
        for name in [".hidden", "mobileclip-0123abcd", "a:b\u{7}"] {
            var fixture = BundleFixture()
            fixture.name = name
            fixture.weights = Data(name.utf8)
            let added = try store().add(fixture.write(in: outside))
            XCTAssertTrue(added.hasPrefix("bundle") || added == "a-b-", added)
        }
    }

    func testWhatAnAppThatWasKilledHadHalfAddedIsRemoved() throws {
        try FileManager.default.createDirectory(at: documents.appendingPathComponent(".adding-x/y"), withIntermediateDirectories: true)
        try BundleFixture().write(in: documents) // put there by Files
        XCTAssertEqual(store().names(), ["fixture"])
        XCTAssertEqual(try store().add(documents.appendingPathComponent("fixture")), "fixture")
        XCTAssertEqual(try left(), ["fixture"])
    }

    func testAddingCanBeCancelled() async throws {
        let source = try BundleFixture().write(in: outside)
        let store = store()
        let task = Task {
            while !Task.isCancelled { await Task.yield() }
            return try store.add(source)
        }
        task.cancel()
        let result = await task.result
        XCTAssertThrowsError(try result.get()) { XCTAssertTrue($0 is CancellationError) }
        XCTAssertEqual(try left(), [])
    }
}
