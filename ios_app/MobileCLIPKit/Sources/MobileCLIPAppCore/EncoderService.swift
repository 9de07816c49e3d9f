import MobileCLIPCore

/// A bundle's towers, used by one task at a time.
public actor EncoderService {
    private let encoder: TowerEncoder

    public nonisolated let bundle: ModelBundle

    /// - Parameter load: makes a session of an artifact; called when a tower is needed for the first time, and after `unload`
    public init(bundle: ModelBundle, target: Target = .coreml, load: @escaping @Sendable (ModelBundle, Artifact) throws -> any Session) throws {
        self.bundle = bundle
        encoder = try TowerEncoder(bundle: bundle, target: target) { try load(bundle, $0) }
    }

    public func embed(_ picture: Picture) throws -> [Float] {
        try Task.checkCancellation()
        return try encoder.embed(picture)
    }

    public func embed(_ caption: String) throws -> [Float] { try encoder.embed(caption) }

    /// One embedding a label.
    public func classes(of prompts: PromptList) throws -> [[Float]] {
        try prompts.labels.map { label in
            try Task.checkCancellation()
            return try encoder.classes([label], templates: prompts.templates).first ?? []
        }
    }

    public func classify(_ picture: Picture, classes: [[Float]], top: Int) throws -> [Prediction] {
        try encoder.classify(picture, classes: classes, top: top)
    }

    /// See `TowerEncoder.reproduces`.
    public func reproduces() throws -> [Reproduction] { try encoder.reproduces() }

    /// Load the towers and run them once, so that the first picture does not wait.
    public func prewarm() throws {
        let side = bundle.manifest.preprocess.resolution
        _ = try encoder.embed(Picture(width: side, height: side, rgb: [UInt8](repeating: 128, count: 3 * side * side)))
        _ = try encoder.embed("")
    }

    /// Give memory back.
    public func unload() { encoder.unload() }
}
