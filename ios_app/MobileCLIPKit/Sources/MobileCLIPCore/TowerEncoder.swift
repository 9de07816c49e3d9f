import Foundation

/// How far a tower is from the exported model on this phone.
public struct Reproduction: Equatable, Sendable {
    public let tower: Tower
    /// The smallest one over the bundle's golden inputs.
    public let cosine: Double
    public let bar: Double
    public var passed: Bool { cosine >= bar }
}

/// The two towers of a bundle: pictures and captions to embeddings of unit length.
public final class TowerEncoder {
    private static let bars = ["fp32": 0.99999, "fp16": 0.999]

    public let bundle: ModelBundle
    private let target: Target
    private let load: (Artifact) throws -> any Session
    private let tokenizer: Tokenizer
    private let preprocessor: Preprocessor
    private var sessions: [Tower: any Session] = [:]

    /// - Parameters:
    ///   - target: whose artifacts are used
    ///   - load: called once a tower, when it is needed for the first time
    public init(bundle: ModelBundle, target: Target, load: @escaping (Artifact) throws -> any Session) throws {
        self.bundle = bundle
        self.target = target
        self.load = load
        tokenizer = try Tokenizer(contentsOf: bundle.url(bundle.manifest.tokenizer.file.path))
        preprocessor = Preprocessor(bundle.manifest.preprocess)
        guard tokenizer.contextLength == bundle.manifest.tokenizer.contextLength else {
            throw MobileCLIPError("the tokenizer is of another length than the bundle; export the bundle again")
        }
    }

    public func embed(_ picture: Picture) throws -> [Float] {
        let baked = bundle.manifest.preprocess.baked ?? false
        return try run(.image, baked ? Data(preprocessor.pixels(picture)) : data(preprocessor.tensor(picture).map(\.bitPattern)))
    }

    public func embed(_ caption: String) throws -> [Float] {
        try run(.text, data(tokenizer.encode(caption).map { UInt32(bitPattern: $0) }))
    }

    /// Zero-shot classes: one embedding a label.
    public func classes(_ labels: [String], templates: [String]) throws -> [[Float]] {
        try labels.map { label in ZeroShot.classEmbedding(try ZeroShot.captions(label, templates: templates).map { try embed($0) }) }
    }

    /// The labels of a picture, best first.
    public func classify(_ picture: Picture, classes: [[Float]], top: Int) throws -> [Prediction] {
        ZeroShot.rank(try embed(picture), classes: classes, logitScale: bundle.manifest.model.logitScale, top: top)
    }

    /// Whether this phone computes what the exported model did, on the bundle's golden inputs; towers that are not there are left out.
    public func reproduces() throws -> [Reproduction] {
        let golden = try SafeTensors(contentsOf: bundle.url(bundle.manifest.golden.path))
        let bar = TowerEncoder.bars[bundle.manifest.options.precision] ?? 1
        let width = bundle.manifest.embedDim
        return try Tower.allCases.compactMap { tower in
            guard bundle.manifest.artifact(target, tower) != nil else { return nil }
            let inputs = try golden.tensor("\(tower.rawValue).input")
            let wanted = try golden.tensor("\(tower.rawValue).embedding").floats()
            let rows = inputs.shape.first ?? 0
            guard rows > 0, wanted.count % width == 0, wanted.count / width == rows else { throw MobileCLIPError("the golden inputs do not fit the bundle; export it again") }
            let rowBytes = inputs.data.count / rows
            let cosines = try (0..<rows).map { row in
                let got = try run(tower, Data(inputs.data.dropFirst(row * rowBytes).prefix(rowBytes)))
                return ZeroShot.dot(got, ZeroShot.normalized(Array(wanted[row * width..<(row + 1) * width])))
            }
            return Reproduction(tower: tower, cosine: cosines.min() ?? 0, bar: bar)
        }
    }

    /// Give the memory of the loaded towers back; they are loaded again when they are needed.
    public func unload() { sessions = [:] }

    /// One input through a tower; a batch is filled with copies of it.
    private func run(_ tower: Tower, _ input: Data) throws -> [Float] {
        guard let artifact = bundle.manifest.artifact(target, tower) else {
            throw MobileCLIPError("the bundle has no \(tower.rawValue) tower for \(target.rawValue); export it with both")
        }
        let session = try sessions[tower] ?? load(artifact)
        sessions[tower] = session
        var batch = Data(capacity: input.count * bundle.manifest.options.batch)
        for _ in 0..<bundle.manifest.options.batch { batch += input }
        let output = try session.run(batch)
        let embedding = Array(output.prefix(bundle.manifest.embedDim))
        guard embedding.count == bundle.manifest.embedDim, embedding.allSatisfy(\.isFinite), embedding.contains(where: { $0 != 0 }) else {
            throw MobileCLIPError("the model gives no numbers on this phone; choose another compute unit, or export the bundle in fp32")
        }
        return ZeroShot.normalized(embedding)
    }

    private func data(_ words: [UInt32]) -> Data {
        words.map(\.littleEndian).withUnsafeBytes { Data($0) }
    }
}
