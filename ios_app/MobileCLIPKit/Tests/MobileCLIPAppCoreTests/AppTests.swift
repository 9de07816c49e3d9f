import Foundation
import MobileCLIPCore
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPAppCore

final class AppTests: XCTestCase {
    func testPromptsAreReadAsPeopleWriteThem() {
        let prompts = PromptList(parsing: "  a cat \r\n\n a photo of a {}\nünïcode 猫\na cat\n\t\n\(String(repeating: "x", count: 201))")
        XCTAssertEqual(prompts.labels, ["a cat", "ünïcode 猫"])
        XCTAssertEqual(prompts.templates, ["a photo of a {}"])
        XCTAssertEqual(prompts.remark, "1 longer than 200 characters left out")
        let many = PromptList(parsing: (0..<250).map { "label \($0)" }.joined(separator: "\n"))
        XCTAssertEqual(many.labels.count, 200)
        XCTAssertEqual(many.templates, ["{}"])
        XCTAssertEqual(many.remark, "only the first 200 labels are used")
        XCTAssertEqual(PromptList(parsing: " \n").labels, [])
        XCTAssertEqual(PromptList(parsing: PromptList.example).labels.count, 8)
    }

    func testOnlyTheToolkitsRequestsAreTaken() throws {
        XCTAssertNil(try LaunchRequest.parse(["app"]))
        XCTAssertNil(try LaunchRequest.parse(["app", "-NSDocumentRevisionsDebugMode", "YES"]))
        let plan = LaunchRequest.PlanName(name: "mobileclip-0123abcd")
        XCTAssertEqual(try LaunchRequest.parse(["app", "--mobileclip-bench", "Documents/mobileclip-0123abcd/plan.json"]), .bench(plan))
        XCTAssertEqual(try LaunchRequest.parse(["app", "--mobileclip-remove", "Documents/mobileclip-0123abcd"]), .remove(plan))
        XCTAssertEqual(try LaunchRequest.parse(["app", "--", "--mobileclip-remove", "Documents/mobileclip-0123abcd"]), .remove(plan)) // what a tool leaves
        for bad in ["", "Documents", "Documents/", "Documents/my bundle", "Documents/mobileclip-0123abcd/..", "Documents/../mobileclip-0123abcd", "/Documents/mobileclip-0123abcd"] {
            XCTAssertThrowsError(try LaunchRequest.parse(["app", "--mobileclip-remove", bad]), bad)
        }
        for bad in [["Documents/mobileclip-0123abcd"], ["Documents/mobileclip-0123abcd/other.json"], ["Documents/mobileclip-0123abc/plan.json"], []] {
            XCTAssertThrowsError(try LaunchRequest.parse(["app", "--mobileclip-bench"] + bad)) { XCTAssertTrue($0 is MobileCLIPError) }
        }
    }

    func testAHeadlessRunTellsHowItEnded() throws {
        let scratch = try Scratch()
        let plan = LaunchRequest.PlanName(name: "mobileclip-0123abcd")
        let folder = scratch.url.appendingPathComponent(plan.name)
        var lines: [String] = []
        func run(_ request: LaunchRequest) -> Int32 {
            lines = []
            return Headless(request, documents: scratch.url).run(host: { FakeHost() }, write: { lines.append($0) })
        }
        XCTAssertEqual(run(.bench(plan)), 1)
        XCTAssertEqual(lines, ["mobileclip-0123abcd holds no plan.json that can be read; start again"])
        let artifact = try Manifest(parsing: try XCTUnwrap(BundleFixture().files()["manifest.json"])).artifacts[1]
        let request = BenchRequest(bundle: "b", artifact: artifact, rows: 1, provider: "all", warmupRuns: 1, minSamples: 2, minSeconds: 0, keep: [0], keepOf: 1)
        let measurement = String(decoding: try JSONEncoder.snake.encode(PlannedMeasurement(request: request, bundle: "0", inputs: "0.inputs")), as: UTF8.self)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data(#"{"schema_version":3,"measurements":[\#(measurement)],"orders":[[0]],"block_seconds":0,"block_samples":1,"cool_seconds":0}"#.utf8)
            .write(to: folder.appendingPathComponent("plan.json"))
        try Data(ints: [Int32](repeating: 1, count: BundleFixture.contextLength)).write(to: folder.appendingPathComponent("0.inputs"))
        XCTAssertEqual(run(.bench(plan)), 0, "\(lines)")
        XCTAssertEqual(lines.last, #"MOBILECLIP {"done":true}"#)
        XCTAssertTrue(lines.dropLast().allSatisfy { $0.hasPrefix(#"MOBILECLIP {"progress":""#) })
        XCTAssertTrue(FileManager.default.fileExists(atPath: folder.appendingPathComponent("answer-0.json").path))
        XCTAssertEqual(run(.remove(plan)), 0)
        XCTAssertFalse(FileManager.default.fileExists(atPath: folder.path))
        XCTAssertEqual(run(.remove(plan)), 0)
    }

    func testTheBenchmarkScreenMeasuresABundle() throws {
        let scratch = try Scratch()
        let bundle = try ModelBundle(folder: BundleFixture().write(in: scratch.url), targets: [.coreml])
        let host = FakeHost()
        host.run = { request, number in request.tower == .image ? 20 : number % 10 == 0 ? 3 : 1 }
        let outcomes = try LocalBench(bundle: bundle, provider: "cpuOnly").run(on: host) { _ in }
        XCTAssertEqual(outcomes.map(\.tower), [.image, .text])
        let image = try XCTUnwrap(outcomes[0].summary)
        XCTAssertEqual(image.n, 500) // ten seconds
        XCTAssertEqual(image.p50, 20, accuracy: 0.01)
        XCTAssertEqual(image.points.count, 250)
        XCTAssertEqual(outcomes[0].cosine ?? 0, 1, accuracy: 1e-6)
        let text = try XCTUnwrap(outcomes[1].summary)
        XCTAssertLessThanOrEqual(text.points.count, 300)
        XCTAssertTrue(text.points.allSatisfy { abs($0.ms - 3) < 0.01 }) // no spike disappears
        XCTAssertEqual(text.p50, 1, accuracy: 0.01)
        XCTAssertEqual(image.warnings, [])
        host.foreground = false
        host.thermals = [.fair]
        let warm = try LocalBench(bundle: bundle, provider: "all").run(on: host) { _ in }
        XCTAssertEqual(warm[0].summary?.warnings, ["the phone was warm", "the app was in the background"])
        host.loadsFail = [.image, .text]
        XCTAssertEqual(try LocalBench(bundle: bundle, provider: "all").run(on: host) { _ in }.compactMap(\.error).count, 2)
        var short = BundleFixture() // an embedding for one of two inputs
        short.name = "short"
        short.golden = SafeTensorsWriter.bytes([("image.input", "F32", [2, 1], Data(floats: [1, 2])), ("image.embedding", "F32", [1, 4], Data(floats: [1, 2, 3, 4]))])
        let damaged = try ModelBundle(folder: short.write(in: scratch.url), targets: [.coreml])
        XCTAssertThrowsError(try LocalBench(bundle: damaged, provider: "all")) { XCTAssertTrue("\($0)".contains("do not fit the bundle"), "\($0)") }
    }

    func testPercentilesAreTheHosts() {
        XCTAssertEqual(BenchSummary.percentile(50, of: [4, 1, 3, 2]), 2.5)
        XCTAssertEqual(BenchSummary.percentile(90, of: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), 10)
        XCTAssertEqual(BenchSummary.percentile(90, of: [7]), 7)
    }

    func testTheServiceClassifies() async throws {
        guard let tokenizer = try BundleFixture.realTokenizer() else { throw XCTSkip("MOBILECLIP_TOKENIZER is not set") }
        let scratch = try Scratch()
        var fixture = BundleFixture()
        fixture.tokenizer = tokenizer
        let bundle = try ModelBundle(folder: fixture.write(in: scratch.url), targets: [.coreml])
        let service = try EncoderService(bundle: bundle) { _, artifact in FakeSession(artifact) }
        try await service.prewarm()
        let passed = try await service.reproduces().allSatisfy(\.passed)
        XCTAssertTrue(passed)
        let classes = try await service.classes(of: PromptList(parsing: "cat\ndog\nthe {}"))
        XCTAssertEqual(classes.count, 2)
        let found = try await service.classify(Picture(width: 1, height: 1, rgb: [1, 2, 3]), classes: classes, top: 5)
        XCTAssertEqual(found.reduce(0) { $0 + $1.probability }, 1, accuracy: 1e-9)
        await service.unload()
    }
}

extension JSONEncoder {
    fileprivate static var snake: JSONEncoder {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        return encoder
    }
}
