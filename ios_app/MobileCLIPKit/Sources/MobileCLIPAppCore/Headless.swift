import Foundation
import MobileCLIPCore

/// What a host asks of the app when it starts it: `--mobileclip-bench Documents/FOLDER/plan.json` or `--mobileclip-remove Documents/FOLDER`.
public enum LaunchRequest: Equatable, Sendable {
    case bench(PlanName)
    case remove(PlanName)

    /// The checked name of a plan's folder.
    public struct PlanName: Equatable, Sendable {
        public let name: String
    }

    private static let documents = "Documents"

    /// - Parameter arguments: the app's, its own name included
    /// - Returns: nil where a person started the app
    /// - Throws: `MobileCLIPError` if it is not what the toolkit writes: nothing else in the documents may be run or removed
    public static func parse(_ arguments: [String]) throws -> LaunchRequest? {
        for (flag, rest) in [("--mobileclip-bench", [PlanFolder.planName]), ("--mobileclip-remove", [])] {
            guard let at = arguments.firstIndex(of: flag) else { continue }
            let path = at + 1 < arguments.count ? arguments[at + 1] : ""
            let parts = path.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 2 + rest.count, parts[0] == documents, PlanFolder.isPlanName(parts[1]), Array(parts[2...]) == rest else {
                throw MobileCLIPError("\(flag) wants a folder that the toolkit has made, not \(path.isEmpty ? "nothing" : path); use the same version of toolkit and app")
            }
            let plan = PlanName(name: parts[1])
            return rest.isEmpty ? .remove(plan) : .bench(plan)
        }
        return nil
    }
}

/// Does a host's request. The lines `MOBILECLIP {...}` tell it how it goes, the answers are in the plan's folder.
public struct Headless: Sendable {
    private let request: LaunchRequest
    private let documents: URL

    public init(_ request: LaunchRequest, documents: URL) {
        self.request = request
        self.documents = documents
    }

    /// - Parameters:
    ///   - host: made on the calling thread, which it keeps busy
    ///   - write: a line for the host
    /// - Returns: the exit code: 0, or 1 with the reason as the last line
    public func run(host: () throws -> any BenchHost, write: @escaping (String) -> Void) -> Int32 {
        do {
            switch request {
            case .bench(let plan):
                try PlanFolder(folder: documents.appendingPathComponent(plan.name)).run(on: host()) { write("MOBILECLIP \($0)") }
            case .remove(let plan):
                let folder = documents.appendingPathComponent(plan.name)
                if FileManager.default.fileExists(atPath: folder.path) { try FileManager.default.removeItem(at: folder) }
            }
            return 0
        } catch {
            write(explanation(of: error))
            return 1
        }
    }
}
