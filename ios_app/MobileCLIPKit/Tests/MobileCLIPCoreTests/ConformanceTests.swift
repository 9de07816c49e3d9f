import Foundation
import XCTest

@testable import MobileCLIPCore

/// The whole conformance kit. `MOBILECLIP_TOKENIZER` names the tokenizer file of a bundle with a context length of 77.
final class ConformanceTests: XCTestCase {
    private let kit = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../../../conformance").standardized

    private func json(_ name: String) throws -> JSON {
        try JSON(parsing: Data(contentsOf: kit.appendingPathComponent(name)))
    }

    private func items(_ value: JSON?) throws -> [JSON] {
        guard case .array(let items)? = value else { throw MobileCLIPError("the kit is damaged") }
        return items
    }

    private func number(_ value: JSON?) -> Double {
        guard case .number(let text)? = value else { return .nan }
        return Double(text) ?? .nan
    }

    private func floats(_ value: JSON?) throws -> [Float] { try items(value).map { Float(number($0)) } }

    private func text(_ value: JSON?) -> String {
        guard case .string(let text)? = value else { return "" }
        return text
    }

    private func data(_ value: JSON?) -> Data { Data((value?.canonical ?? "").utf8) }

    func testCaptionsHaveTheirIDs() throws {
        guard let path = ProcessInfo.processInfo.environment["MOBILECLIP_TOKENIZER"] else { throw XCTSkip("MOBILECLIP_TOKENIZER is not set") }
        let tokenizer = try Tokenizer(contentsOf: URL(fileURLWithPath: path))
        let lines = try String(contentsOf: kit.appendingPathComponent("captions.jsonl"), encoding: .utf8).split(separator: "\n")
        XCTAssertGreaterThanOrEqual(lines.count, 2000)
        for line in lines {
            let caption = try JSON(parsing: Data(line.utf8))
            XCTAssertEqual(tokenizer.ids(text(caption["text"])), try items(caption["ids"]).map { Int32(number($0)) }, text(caption["text"]).debugDescription)
        }
        XCTAssertEqual(tokenizer.encode("a cat").prefix(5), [49406, 320, 2368, 49407, 0])
    }

    func testPicturesBecomeTheirPixels() throws {
        let file = try SafeTensors(contentsOf: kit.appendingPathComponent("pixels.safetensors"))
        let cases = try items(JSON(parsing: Data((file.metadata["cases"] ?? "").utf8)))
        XCTAssertGreaterThanOrEqual(cases.count, 40)
        for (n, one) in cases.enumerated() {
            let info = try Coders.decoder().decode(PreprocessInfo.self, from: data(one))
            let stored = try file.tensor("picture_\(n)")
            let picture = try Picture(width: stored.shape[1], height: stored.shape[0], rgb: stored.bytes()).upright(orientation: Int(number(one["orientation"])))
            XCTAssertEqual(Preprocessor(info).pixels(picture), try file.tensor("pixels_\(n)").bytes(), "case \(n)")
            if let tensor = file.tensors["tensor_\(n)"] {
                for (a, b) in zip(Preprocessor(info).tensor(picture), try tensor.floats()) { XCTAssertEqual(a, b, accuracy: 1e-5) }
            }
        }
    }

    func testLabelsHaveTheirRanks() throws {
        for one in try items(json("ranking.json")["rank"]) {
            let found = ZeroShot.rank(
                try floats(one["image"]), classes: try items(one["classes"]).map { try floats($0) }, logitScale: number(one["logit_scale"]), top: Int(number(one["top"])))
            let expected = try items(one["expected"])
            XCTAssertEqual(found.map(\.label), expected.map { Int(number($0["label"])) })
            for (a, b) in zip(found, expected) {
                XCTAssertEqual(a.probability, number(b["probability"]), accuracy: 1e-6)
                XCTAssertEqual(a.cosine, number(b["cosine"]), accuracy: 1e-6)
            }
        }
    }

    func testSearchFindsItsRows() async throws {
        for one in try items(json("ranking.json")["search"]) {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: folder) }
            let rows = try items(one["matrix"])
            let index = try EmbeddingIndex(folder: folder, embeddingSpace: "1", width: try items(rows.first).count)
            for (i, row) in rows.enumerated() { try await index.put(String(i), floats(row)) }
            try await index.save()
            let found = try await index.search(floats(one["query"]), top: Int(number(one["top"])))
            XCTAssertEqual(found.map(\.id), try items(one["expected"]).map { String(Int(number($0["row"]))) })
        }
    }

    func testManifestsAreOpenedOrRefused() throws {
        guard case .array(let cases) = try json("manifests.json") else { return XCTFail("the kit is damaged") }
        for one in cases {
            if one["valid"] == .bool(true) {
                XCTAssertEqual(try Manifest(parsing: data(one["manifest"])).model.name, "mobileclip_nano")
            } else {
                XCTAssertThrowsError(try Manifest(parsing: data(one["manifest"])), text(one["name"])) { error in
                    XCTAssertFalse("\(error)".contains("\n"))
                }
            }
        }
    }

    func testThePlanIsReadAndAnswersAreWritten() throws {
        let document = try json("answers.json")
        let plan = try BenchPlan(parsing: data(document["plan"]))
        XCTAssertEqual(plan.measurements.map(\.request.tower), [.image, .text])
        XCTAssertEqual((0..<80).filter { plan.measurements[0].request.keeps($0) }, [0, 27, 59, 60])
        let answer = try JSON(parsing: Coders.encoder().encode(BenchAnswer(samples: nil, error: "no model")))
        XCTAssertEqual(answer, .object(["schema_version": .number("3"), "samples": .null, "error": .string("no model")]))
    }

    func testHashesAreThoseOfTheStandard() {
        var digest = PortableSHA256()
        digest.update(Data("ab".utf8))
        digest.update(Data("c".utf8))
        let hex = digest.finish().map { String(Int($0) + 256, radix: 16).dropFirst() }.joined()
        XCTAssertEqual(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    }
}
