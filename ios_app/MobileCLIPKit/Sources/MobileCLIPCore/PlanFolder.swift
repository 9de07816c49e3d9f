import Foundation

/// The folder of a plan that a host has copied to the phone: `plan.json`, the bundles and inputs that it names, and then the answers.
///
/// A host gives it a name of its own kind and removes it when it has fetched the answers.
public struct PlanFolder: Sendable {
    public static let planName = "plan.json"
    private static let prefix = "mobileclip-"
    private static let digits = 8
    private static let maxPlanBytes = 16 << 20

    public let folder: URL

    public init(folder: URL) {
        self.folder = folder
    }

    /// Whether a folder was made by a host: `mobileclip-` and eight hexadecimal digits. Nobody's bundle is called so.
    public static func isPlanName(_ name: String) -> Bool {
        name.hasPrefix(prefix) && name.utf8.count == prefix.utf8.count + digits && name.dropFirst(prefix.count).allSatisfy { "0123456789abcdef".contains($0) }
    }

    /// Do the plan.
    ///
    /// - Parameters:
    ///   - tell: told a line for the host after `MOBILECLIP`
    /// - Throws: `MobileCLIPError` if there is no plan, or an answer cannot be written
    public func run(on host: any BenchHost, tell: @escaping (String) -> Void) throws {
        removeEarlierPlans()
        let file = folder.appendingPathComponent(PlanFolder.planName)
        guard let data = try? Data(contentsOf: file, options: .mappedIfSafe), data.count <= PlanFolder.maxPlanBytes else {
            throw MobileCLIPError("\(folder.lastPathComponent) holds no \(PlanFolder.planName) that can be read; start again")
        }
        let runner = BenchRunner(
            plan: try BenchPlan(parsing: data), host: host, open: opened,
            tell: { text in tell(JSON.object(["progress": .string(text)]).canonical) }, answer: write)
        try runner.run()
        tell(JSON.object(["done": .bool(true)]).canonical)
    }

    /// Of a host that was killed.
    private func removeEarlierPlans() {
        let parent = folder.deletingLastPathComponent()
        for name in (try? FileManager.default.contentsOfDirectory(atPath: parent.path)) ?? []
        where PlanFolder.isPlanName(name) && name != folder.lastPathComponent {
            try? FileManager.default.removeItem(at: parent.appendingPathComponent(name))
        }
    }

    private func opened(_ planned: PlannedMeasurement) throws -> (bundle: URL, inputs: Data) {
        let bundle = try inside(planned.bundle)
        _ = try inside("\(planned.bundle)/\(planned.request.artifact)")
        let file = try inside(planned.inputs)
        do {
            return (bundle, try Data(contentsOf: file, options: .mappedIfSafe))
        } catch {
            throw MobileCLIPError("\(planned.inputs) cannot be read; start again")
        }
    }

    private func inside(_ path: String) throws -> URL {
        let file = folder.appendingPathComponent(path).standardizedFileURL
        guard file.path.hasPrefix(folder.standardizedFileURL.path + "/") else { throw MobileCLIPError("\(path) leads out of the plan's folder") }
        return file
    }

    private func write(_ number: Int, _ answer: BenchAnswer) throws {
        do {
            try Coders.encoder().encode(answer).write(to: folder.appendingPathComponent("answer-\(number).json"), options: .atomic)
        } catch {
            throw MobileCLIPError("the answer cannot be written; free some storage")
        }
    }
}
