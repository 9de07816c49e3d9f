import Foundation
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPCore

final class BundleTests: XCTestCase {
    private func refuses(_ text: String, _ line: UInt = #line, _ action: () throws -> Void) {
        XCTAssertThrowsError(try action(), line: line) {
            XCTAssertTrue($0 is MobileCLIPError, "\($0)", line: line)
            XCTAssertTrue("\($0)".contains(text), "\($0)", line: line)
            XCTAssertFalse("\($0)".contains("\n"), line: line)
        }
    }

    func testABundleIsOpened() throws {
        let scratch = try Scratch()
        let folder = try BundleFixture().write(in: scratch.url)
        let bundle = try ModelBundle(folder: folder, targets: [.coreml])
        XCTAssertEqual(bundle.manifest.artifact(.coreml, .text)?.path, "text.mlpackage")
        XCTAssertNil(bundle.manifest.artifact(.onnx, .text))
        refuses("nothing for onnx") { _ = try ModelBundle(folder: folder, targets: [.onnx]) }
        refuses("is no bundle") { _ = try ModelBundle(folder: scratch.url, targets: [.coreml]) }
    }

    func testOneChangedByteIsSeenInEveryFile() throws {
        let scratch = try Scratch()
        let fixture = BundleFixture()
        let folder = try fixture.write(in: scratch.url)
        for (path, data) in fixture.files() where path != "reference.safetensors" { // the app does not need it
            let file = folder.appendingPathComponent(path)
            var changed = data
            changed[changed.count / 2] ^= 1
            try changed.write(to: file)
            XCTAssertThrowsError(try ModelBundle(folder: folder, targets: [.coreml]), path) { XCTAssertTrue($0 is MobileCLIPError) }
            try FileManager.default.removeItem(at: file)
            XCTAssertThrowsError(try ModelBundle(folder: folder, targets: [.coreml]), path) { XCTAssertTrue($0 is MobileCLIPError) }
            try data.write(to: file)
        }
        _ = try ModelBundle(folder: folder, targets: [.coreml])
    }

    func testALinkOutOfTheBundleIsNotFollowed() throws {
        let scratch = try Scratch()
        let folder = try BundleFixture().write(in: scratch.url)
        let file = folder.appendingPathComponent("golden.safetensors")
        let outside = scratch.url.appendingPathComponent("outside")
        try FileManager.default.moveItem(at: file, to: outside)
        try FileManager.default.createSymbolicLink(at: file, withDestinationURL: outside)
        refuses("leads out of the bundle") { _ = try ModelBundle(folder: folder, targets: [.coreml]) }
    }

    func testSafetensorsThatAreDamagedAreRefused() throws {
        let scratch = try Scratch()
        let file = scratch.url.appendingPathComponent("x.safetensors")
        func write(_ data: Data) throws { try data.write(to: file) }
        try write(SafeTensorsWriter.bytes([("a", "F32", [2], Data(floats: [1, -2])), ("b", "I32", [1], Data(ints: [-3])), ("c", "U8", [], Data([7]))]))
        let good = try SafeTensors(contentsOf: file)
        XCTAssertEqual(try good.tensor("a").floats(), [1, -2])
        XCTAssertEqual(try good.tensor("b").ints(), [-3])
        XCTAssertEqual(try good.tensor("c").bytes(), [7])
        refuses("holds F32, not I32") { _ = try good.tensor("a").ints() }
        refuses("holds no d") { _ = try good.tensor("d") }
        let eight = Data(count: 8)
        let bad = [
            Data(), Data(count: 7), Data([255, 255, 255, 255, 255, 255, 255, 255]) + eight, SafeTensorsWriter.withHeader("[]", eight),
            SafeTensorsWriter.withHeader("{", eight), SafeTensorsWriter.withHeader(#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, eight),
            SafeTensorsWriter.withHeader(#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, eight),
            SafeTensorsWriter.withHeader(#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, eight),
            SafeTensorsWriter.withHeader(#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, eight),
            SafeTensorsWriter.withHeader(#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#, eight),
            SafeTensorsWriter.withHeader(#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, eight),
        ]
        for data in bad {
            try write(data)
            refuses("copy") { _ = try SafeTensors(contentsOf: file) }
        }
        try FileManager.default.removeItem(at: file)
        refuses("cannot be read") { _ = try SafeTensors(contentsOf: file) }
    }

    func testTheTowersEmbedAndReproduceTheGoldenInputs() throws {
        guard let tokenizer = try BundleFixture.realTokenizer() else { throw XCTSkip("MOBILECLIP_TOKENIZER is not set") }
        for (batch, baked) in [(1, false), (3, false), (1, true)] {
            let scratch = try Scratch()
            var fixture = BundleFixture()
            (fixture.batch, fixture.baked, fixture.tokenizer) = (batch, baked, tokenizer)
            var loads = 0
            let bundle = try ModelBundle(folder: fixture.write(in: scratch.url), targets: [.coreml])
            let encoder = try TowerEncoder(bundle: bundle, target: .coreml) { loads += 1; return FakeSession($0) }
            let found = try encoder.reproduces()
            XCTAssertEqual(found.map(\.tower), [.image, .text])
            XCTAssertTrue(found.allSatisfy { $0.passed && $0.cosine > 0.999_999 })
            let red = try encoder.embed(Picture(width: 5, height: 6, rgb: [UInt8](repeating: 0, count: 90).enumerated().map { $0.offset % 3 == 0 ? 255 : 0 }))
            XCTAssertEqual(red[0], Float(0.5).squareRoot(), accuracy: 1e-6)
            let cat = try encoder.embed("a cat")
            XCTAssertEqual(cat.reduce(0) { $0 + $1 * $1 }, 1, accuracy: 1e-5)
            XCTAssertEqual(try encoder.classes(["cat"], templates: ["a {}"]).first?.first ?? 0, cat[0], accuracy: 1e-6)
            XCTAssertEqual(loads, 2)
            encoder.unload()
            _ = try encoder.embed("a cat")
            XCTAssertEqual(loads, 3)
        }
    }

    /// Numbers of a bundle are multiplied: none may be so large that this traps.
    func testSizesThatNoModelHasAreRefused() throws {
        let scratch = try Scratch()
        for batch in [0, 1 << 17, 1 << 62] {
            var fixture = BundleFixture()
            (fixture.name, fixture.batch) = ("\(batch)", batch)
            refuses("does not fit together") { _ = try ModelBundle(folder: fixture.write(in: scratch.url), targets: [.coreml]) }
        }
        guard let tokenizer = try BundleFixture.realTokenizer() else { throw XCTSkip("MOBILECLIP_TOKENIZER is not set") }
        var fixture = BundleFixture()
        fixture.tokenizer = tokenizer
        fixture.golden = SafeTensorsWriter.bytes(Tower.allCases.flatMap { tower in
            [("\(tower.rawValue).input", "U8", [1 << 62, 0], Data()), ("\(tower.rawValue).embedding", "F32", [0], Data())]
        })
        let bundle = try ModelBundle(folder: fixture.write(in: scratch.url), targets: [.coreml])
        refuses("do not fit the bundle") { _ = try TowerEncoder(bundle: bundle, target: .coreml) { FakeSession($0) }.reproduces() }
    }

    func testAPhoneThatComputesSomethingElseIsSeen() throws {
        guard let tokenizer = try BundleFixture.realTokenizer() else { throw XCTSkip("MOBILECLIP_TOKENIZER is not set") }
        let scratch = try Scratch()
        var fixture = BundleFixture()
        (fixture.error, fixture.precision, fixture.tokenizer) = (0.05, "fp16", tokenizer)
        let bundle = try ModelBundle(folder: fixture.write(in: scratch.url), targets: [.coreml])
        let found = try TowerEncoder(bundle: bundle, target: .coreml) { FakeSession($0) }.reproduces()
        XCTAssertEqual(found.map(\.bar), [0.999, 0.999])
        XCTAssertEqual(found.map(\.passed), [false, true])
        let broken = try TowerEncoder(bundle: bundle, target: .coreml) { _ in NoNumbers() }
        refuses("gives no numbers") { _ = try broken.embed("a cat") }
    }
}

private final class NoNumbers: Session {
    let engine = "broken"

    func run(_ input: Data) throws -> [Float] { [.nan, 1, 1, 1] }
}
