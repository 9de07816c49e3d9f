import Foundation
import MobileCLIPCore
import Observation

/// Which bundle is in use, and whether it can be.
@MainActor
@Observable
public final class BundleChoice {
    /// An opened bundle that has been through the golden check.
    public struct Ready: Sendable {
        public let name: String
        public let service: EncoderService
        public let reproductions: [Reproduction]

        public var bundle: ModelBundle { service.bundle }
        public var reproduces: Bool { reproductions.allSatisfy(\.passed) }
    }

    public enum Stage: Sendable {
        case empty
        case loading(String)
        case ready(Ready)
        /// Why not, in a line.
        case failed(String)
    }

    /// Makes what loads a bundle's artifacts; may take its time, to compile them for example.
    public typealias Prepare = @Sendable (ModelBundle, ComputeUnit) async throws -> (@Sendable (ModelBundle, Artifact) throws -> any Session)

    public private(set) var stage = Stage.empty
    public private(set) var names: [String] = []
    public private(set) var selected: String
    /// What went wrong with adding or removing a bundle; empty if nothing.
    public private(set) var remark = ""
    public private(set) var isAdding = false

    public var unit: ComputeUnit {
        didSet {
            guard unit != oldValue else { return }
            defaults.set(unit.rawValue, forKey: "unit")
            open()
        }
    }

    private let store: BundleStore
    private let defaults: UserDefaults
    private let prepare: Prepare
    private var opening: Task<Void, Never>?

    public init(store: BundleStore, defaults: UserDefaults, prepare: @escaping Prepare) {
        self.store = store
        self.defaults = defaults
        self.prepare = prepare
        selected = defaults.string(forKey: "bundle") ?? ""
        unit = defaults.string(forKey: "unit").flatMap { ComputeUnit(rawValue: $0) } ?? .all
    }

    public var ready: Ready? {
        if case .ready(let ready) = stage { return ready }
        return nil
    }

    /// Look which bundles there are. The one in use stays, and is loaded again where memory was short.
    public func refresh() {
        names = store.names()
        if case .loading = stage { return }
        guard let ready, names.contains(ready.name) else { return open() }
        Task { try? await ready.service.prewarm() } // what is wrong shows when it is used
    }

    public func select(_ name: String) {
        guard name != selected || ready == nil else { return }
        selected = name
        defaults.set(name, forKey: "bundle")
        open()
    }

    /// Copy a bundle, a folder or a zip file, and use it.
    public func add(_ url: URL) async {
        isAdding = true
        remark = ""
        defer { isAdding = false }
        do {
            let name = try await BundleChoice.added(url, to: store)
            names = store.names()
            select(name)
        } catch {
            remark = explanation(of: error)
        }
    }

    /// A bundle's manifest, its files not being checked; nil where it cannot be read.
    public func manifest(_ name: String) -> Manifest? { store.manifest(name) }

    public func remove(_ name: String) {
        do {
            try store.remove(name)
            remark = ""
        } catch {
            remark = explanation(of: error)
        }
        refresh()
    }

    /// Memory is short: unload the models, which are loaded again when they are needed.
    public func giveMemoryBack() async { await ready?.service.unload() }

    /// Wait until the bundle that is wanted is ready or has failed.
    func opened() async { await opening?.value }

    private func open() {
        opening?.cancel()
        guard let name = names.contains(selected) ? selected : names.first else {
            stage = .empty
            return
        }
        selected = name
        stage = .loading("Checking \(name)…")
        let (store, unit, prepare) = (store, unit, prepare)
        opening = Task {
            do {
                let ready = try await BundleChoice.opened(name, in: store, unit, prepare)
                if !Task.isCancelled { stage = .ready(ready) }
            } catch {
                if !Task.isCancelled { stage = .failed(explanation(of: error)) }
            }
        }
    }

    private nonisolated static func added(_ url: URL, to store: BundleStore) async throws -> String { try store.add(url) }

    private nonisolated static func opened(_ name: String, in store: BundleStore, _ unit: ComputeUnit, _ prepare: Prepare) async throws -> Ready {
        let bundle = try store.open(name)
        try Task.checkCancellation()
        let service = try EncoderService(bundle: bundle, load: try await prepare(bundle, unit))
        return Ready(name: name, service: service, reproductions: try await service.reproduces())
    }
}
