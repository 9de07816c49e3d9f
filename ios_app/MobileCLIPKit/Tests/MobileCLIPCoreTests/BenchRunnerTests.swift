import Foundation
import MobileCLIPTestSupport
import XCTest

@testable import MobileCLIPCore

/// Plans done by a scripted phone. `MOBILECLIP_ANSWERS` names a folder that keeps the answers, for the toolkit's own models to read.
final class BenchRunnerTests: XCTestCase {
    private var scratch = try? Scratch()
    private var lines: [String] = []

    private var documents: URL { scratch?.url ?? FileManager.default.temporaryDirectory }
    private var folder: URL { documents.appendingPathComponent("mobileclip-0123abcd") }

    /// Two towers with three inputs each; `change` edits the plan's text.
    private func write(rows: Int = 3, batch: Int = 1, mode: String = "burst", change: (String) -> String = { $0 }) throws {
        func request(_ tower: String, _ input: String) -> String {
            #"{"request":{"schema_version":3,"bundle":"nano","target":"coreml","tower":"\#(tower)","artifact":"\#(tower).mlpackage","input":\#(input),"#
                + #""output":{"name":"embedding","dtype":"float32","shape":[\#(batch),4]},"inputs":"x","rows":\#(rows),"provider":"all","threads":1,"mode":"\#(mode)","#
                + #""warmup_runs":2,"min_samples":6,"min_seconds":0.04,"keep":[1,0],"keep_of":3,"per_op":\#(tower == "image")},"bundle":"\#(tower == "image" ? 0 : 1)","inputs":"\#(tower == "image" ? 0 : 1).inputs"}"#
        }
        let image = request("image", #"{"name":"image","dtype":"float32","shape":[\#(batch),3,4,4]}"#)
        let text = request("text", #"{"name":"tokens","dtype":"int32","shape":[\#(batch),77]}"#)
        let plan = #"{"schema_version":3,"measurements":[\#(image),\#(text)],"orders":[[0,1],[1,0]],"block_seconds":0.01,"block_samples":3,"cool_seconds":60}"#
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data(change(plan).utf8).write(to: folder.appendingPathComponent("plan.json"))
        try Data(floats: (0..<rows * 48).map { Float($0 / 48) }).write(to: folder.appendingPathComponent("0.inputs"))
        try Data(ints: (0..<rows * 77).map { Int32($0 / 77 + 1) }).write(to: folder.appendingPathComponent("1.inputs"))
    }

    private func run(_ host: FakeHost) throws -> [BenchAnswer] {
        lines = []
        try PlanFolder(folder: folder).run(on: host) { self.lines.append($0) }
        return try (0..<2).map { number in
            let data = try Data(contentsOf: folder.appendingPathComponent("answer-\(number).json"))
            if let kept = ProcessInfo.processInfo.environment["MOBILECLIP_ANSWERS"] {
                try data.write(to: URL(fileURLWithPath: kept).appendingPathComponent("\(UUID().uuidString).json"))
            }
            return try Coders.decoder().decode(BenchAnswer.self, from: data)
        }
    }

    func testAPlanIsDoneInTurns() throws {
        try write()
        let host = FakeHost()
        host.told = [OperatorRuns(name: "conv", kind: "ios17.conv", where: "neuralEngine", share: 0.75), OperatorRuns(name: "add", kind: "ios17.add", where: "cpu")]
        host.run = { request, _ in request.tower == .image ? 10 : 2 }
        let answers = try run(host)
        let image = try XCTUnwrap(answers[0].samples)
        XCTAssertNil(answers[0].error)
        XCTAssertEqual(image.engine, "fake 1")
        XCTAssertEqual(image.blockSamples, [3, 3]) // three of 10 ms are more than a block's 10 ms
        XCTAssertEqual(image.latencyMs.count, 6)
        XCTAssertTrue(image.latencyMs.allSatisfy { abs($0 - 10) < 0.01 })
        XCTAssertEqual(image.startMs.first, 0)
        XCTAssertEqual(image.warmupMs.count, 2)
        XCTAssertEqual(image.firstRunMs, 10, accuracy: 0.01)
        XCTAssertEqual(image.loadMs, 50, accuracy: 0.01)
        XCTAssertEqual(try XCTUnwrap(image.warmLoadMs), 50, accuracy: 0.01)
        XCTAssertEqual(image.states.map(\.moment), ["before", "after"])
        XCTAssertEqual(image.peakMemoryBytes, 1 << 20)
        XCTAssertEqual(image.placement, ["neuralEngine": 1, "cpu": 1])
        XCTAssertEqual(image.operators, host.told)
        let text = try XCTUnwrap(answers[1].samples)
        XCTAssertEqual(text.latencyMs.count, 20) // 2 ms each, until 40 ms are there
        XCTAssertEqual(text.blockSamples, [5, 5, 5, 5])
        XCTAssertEqual(text.operators, []) // nobody asked for them
        XCTAssertEqual(host.loads, ["0/image.mlpackage", "1/text.mlpackage", "0/image.mlpackage", "1/text.mlpackage"])
        XCTAssertEqual(lines.last, #"{"done":true}"#)
        XCTAssertEqual(lines.first, #"{"progress":"loading nano coreml image"}"#)
    }

    func testKeptOutputsAreThoseOfTheirInputs() throws {
        for batch in [1, 2] {
            try write(batch: batch)
            for answer in try run(FakeHost()) {
                let samples = try XCTUnwrap(answer.samples)
                XCTAssertEqual(samples.kept.map(\.sample).prefix(3), [1, 3, 7])
                for kept in samples.kept {
                    XCTAssertEqual(kept.embedding.count, 4 * batch)
                    for row in 0..<batch {
                        let input = (kept.firstInput + row) % 3
                        let isImage = samples.latencyMs.count > 0 && kept.embedding[4 * row + 3] == 1 && kept.embedding[4 * row] == Float(input)
                        XCTAssertTrue(isImage || kept.embedding[4 * row] == Float(input + 1), "\(kept.embedding) of input \(input)")
                    }
                }
            }
        }
    }

    func testTheLongModesGoOnWithoutAPause() throws {
        try write(mode: "sustained") { $0.replacingOccurrences(of: #""min_seconds":0.04"#, with: #""min_seconds":70"#) }
        let host = FakeHost()
        host.run = { _, _ in 1000 }
        let samples = try XCTUnwrap(try run(host)[0].samples)
        XCTAssertEqual(samples.blockSamples, [70])
        XCTAssertEqual(samples.states.map(\.moment), ["before", "during", "during", "after"])
    }

    /// The host stops an app that it has not heard of for some minutes.
    func testItIsHeardOfHoweverLongItTakes() throws {
        for mode in ["burst", "sustained"] {
            try write(mode: mode) { $0.replacingOccurrences(of: #""min_seconds":0.04"#, with: #""min_seconds":600"#) }
            let host = FakeHost()
            host.run = { _, _ in 200 }
            var heard: [UInt64] = []
            try PlanFolder(folder: folder).run(on: host) { _ in heard.append(host.nanoseconds()) }
            XCTAssertLessThan(zip(heard.dropFirst(), heard).map { $0 - $1 }.max() ?? 0, 45_000_000_000, mode)
            XCTAssertLessThan(heard.count, 60)
        }
    }

    func testAWarmDeviceCoolsDownFirst() throws {
        try write()
        let host = FakeHost()
        host.thermals = [.serious, .fair, .nominal]
        XCTAssertNil(try run(host)[0].error)
        XCTAssertEqual(host.slept, 10)
        host.thermals = [.critical] // it never does
        XCTAssertEqual(try run(host)[0].samples?.states.first?.thermal, .critical)
        XCTAssertGreaterThanOrEqual(host.slept, 65)
        XCTAssertLessThan(host.slept, 80)
    }

    func testOneThatCannotBeLoadedLeavesTheOthersAlone() throws {
        try write()
        let host = FakeHost()
        host.loadsFail = [.image]
        let answers = try run(host)
        XCTAssertNil(answers[0].samples)
        XCTAssertEqual(answers[0].error, "CoreML refuses it for a reason")
        XCTAssertNil(answers[1].error)
        XCTAssertEqual(lines.last, #"{"done":true}"#)
    }

    func testOneThatEndsEarlyKeepsWhatItHas() throws {
        try write()
        let host = FakeHost()
        host.run = { request, number in
            if request.tower == .text, number == 12 { throw MobileCLIPError("out of memory") }
            return 5
        }
        let answers = try run(host)
        let samples = try XCTUnwrap(answers[1].samples)
        XCTAssertEqual(answers[1].error, "out of memory")
        XCTAssertEqual(samples.endedEarly, "out of memory")
        XCTAssertEqual(samples.blockSamples.reduce(0, +), samples.latencyMs.count)
        XCTAssertFalse(samples.blockSamples.contains(0))
        XCTAssertNil(answers[0].error)
        host.run = { _, _ in throw MobileCLIPError(String(repeating: "x\n", count: 2000)) }
        XCTAssertTrue(try run(host).allSatisfy { $0.samples == nil && $0.error?.count == 500 })
    }

    func testNothingOutsideThePlansFolderIsRead() throws {
        for (from, to) in [(#""bundle":"0""#, #""bundle":"../0""#), (#""inputs":"0.inputs""#, #""inputs":"../0.inputs""#), (#""artifact":"image.mlpackage""#, #""artifact":"../../image""#)] {
            try write { $0.replacingOccurrences(of: from, with: to) }
            let answers = try run(FakeHost())
            XCTAssertTrue(answers[0].error?.contains("leads out of the plan's folder") == true, "\(answers[0])")
            XCTAssertNil(answers[1].error)
        }
    }

    func testInputsMustHaveTheirSize() throws {
        try write()
        try Data(count: 5).write(to: folder.appendingPathComponent("0.inputs"))
        try FileManager.default.removeItem(at: folder.appendingPathComponent("1.inputs"))
        let answers = try run(FakeHost())
        XCTAssertEqual(answers[0].error, "the inputs have not the size of 3 rows; start again")
        XCTAssertEqual(answers[1].error, "1.inputs cannot be read; start again")
    }

    func testAPlanThatCannotBeUsedIsRefused() throws {
        let changes: [(String, String, String)] = [
            (#"{"schema_version":3,"measurements""#, #"{"schema_version":4,"measurements""#, "version 4"), ("[[0,1],[1,0]]", "[[0,0]]", "does not fit"),
            ("[[0,1],[1,0]]", "[]", "does not fit"), (#""rows":3"#, #""rows":0"#, "does not fit"), (#""keep_of":3"#, #""keep_of":0"#, "does not fit"), ("{", "[", "cannot be read"),
        ]
        for (from, to, reason) in changes {
            try write { $0.replacingOccurrences(of: from, with: to) }
            XCTAssertThrowsError(try run(FakeHost())) { XCTAssertTrue("\($0)".contains(reason), "\($0)") }
        }
        try FileManager.default.removeItem(at: folder)
        XCTAssertThrowsError(try run(FakeHost())) { XCTAssertTrue($0 is MobileCLIPError) }
    }

    func testOnlyFoldersOfHostsAreRemoved() throws {
        try write()
        let others = ["mobileclip-deadbeef", "mobileclip-s0", "mobileclip_nano", "mobileclip-DEADBEEF"]
        for name in others { try FileManager.default.createDirectory(at: documents.appendingPathComponent(name), withIntermediateDirectories: true) }
        _ = try run(FakeHost())
        let left = try FileManager.default.contentsOfDirectory(atPath: documents.path)
        XCTAssertEqual(Set(left), ["mobileclip-0123abcd", "mobileclip-s0", "mobileclip_nano", "mobileclip-DEADBEEF"])
    }

    func testWhenItIsStoppedItKeepsWhatItHas() throws {
        try write()
        let host = FakeHost()
        var number = 0
        host.run = { _, _ in
            number += 1
            host.stopped = number >= 12
            return 5
        }
        let answers = try run(host)
        XCTAssertEqual(answers.map(\.error), ["it was stopped", "it was stopped"])
        XCTAssertGreaterThan(answers[0].samples?.latencyMs.count ?? 0, 0)
    }

    func testAnswersThatCannotBeWrittenEndTheRun() throws {
        try write()
        for number in 0..<2 { // a folder in the answer's place
            try FileManager.default.createDirectory(at: folder.appendingPathComponent("answer-\(number).json/x"), withIntermediateDirectories: true)
        }
        XCTAssertThrowsError(try run(FakeHost())) { XCTAssertEqual("\($0)", "the answer cannot be written; free some storage") }
    }
}
