import Foundation
import MobileCLIPAppCore
import MobileCLIPCore
import MobileCLIPCoreML
import Observation
import UIKit

/// What all screens share; what is decided is in `MobileCLIPAppCore`.
@MainActor
@Observable
final class AppModel {
    let phone: PhoneState
    let bundles: BundleChoice
    let photos: PhotoSearch
    let bench = BenchModel()
    private let compiled: CompiledModels

    init() {
        let phone = PhoneState()
        let compiled = CompiledModels(folder: URL.cachesDirectory.appending(path: "compiled"))
        self.phone = phone
        self.compiled = compiled
        photos = PhotoSearch(library: PhotoKitLibrary(), folder: URL.applicationSupportDirectory, hold: { phone.reasonToWait })
        bundles = BundleChoice(store: BundleStore(folder: URL.documentsDirectory), defaults: .standard) { bundle, unit in
            try await AppModel.loader(bundle, unit, compiled)
        }
        _ = NotificationCenter.default.addObserver(forName: UIApplication.didReceiveMemoryWarningNotification, object: nil, queue: .main) { [weak self] _ in
            MainActor.assumeIsolated { self?.giveMemoryBack() }
        }
    }

    /// Copy a bundle that the user picked outside the app.
    func add(_ url: URL) async {
        let isScoped = url.startAccessingSecurityScopedResource()
        defer { if isScoped { url.stopAccessingSecurityScopedResource() } }
        await bundles.add(url)
    }

    func remove(_ name: String) {
        if let manifest = bundles.manifest(name) { manifest.artifacts.forEach { compiled.remove($0) } }
        bundles.remove(name)
    }

    private func giveMemoryBack() {
        photos.stop("stopped, as the phone is short of memory; close other apps and update the index again")
        Task { await bundles.giveMemoryBack() }
    }

    /// Compile a bundle's models, and load them when they are needed.
    private nonisolated static func loader(
        _ bundle: ModelBundle, _ unit: ComputeUnit, _ compiled: CompiledModels
    ) async throws -> @Sendable (ModelBundle, Artifact) throws -> any Session {
        var models: [Tower: URL] = [:]
        for tower in Tower.allCases {
            guard let artifact = bundle.manifest.artifact(.coreml, tower) else { continue }
            models[tower] = try await compiled.model(of: artifact, in: bundle)
        }
        let found = models
        return { _, artifact in
            guard let model = found[artifact.tower] else { throw MobileCLIPError("the bundle has no \(artifact.tower.rawValue) tower; export it with both") }
            return try CoreMLSession(compiled: model, input: artifact.input, output: artifact.output, units: unit.rawValue)
        }
    }
}
