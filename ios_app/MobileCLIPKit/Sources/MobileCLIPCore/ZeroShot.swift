import Foundation

/// A label with what the model thinks of it.
public struct Prediction: Equatable, Sendable {
    public let label: Int
    public let probability: Double
    public let cosine: Double
}

/// Zero-shot classification (Radford et al. 2021, arXiv 2103.00020, section 3.1): embeddings of captions are the classes.
public enum ZeroShot {
    private static let tiny = 1e-12

    /// The captions of a label: `{}` of each template stands for it.
    public static func captions(_ label: String, templates: [String]) -> [String] {
        templates.map { $0.replacingOccurrences(of: "{}", with: label) }
    }

    /// The embedding of a class: the mean of its captions' normalised embeddings, normalised; empty without captions.
    public static func classEmbedding(_ captions: [[Float]]) -> [Float] {
        guard let width = captions.first?.count else { return [] }
        let mean = (0..<width).map { i in captions.reduce(0.0) { $0 + Double($1[i]) } / Double(captions.count) }
        let norm = max(mean.reduce(0) { $0 + $1 * $1 }.squareRoot(), tiny)
        return mean.map { Float($0 / norm) }
    }

    /// An embedding of unit length; zeros stay.
    public static func normalized(_ embedding: [Float]) -> [Float] {
        let norm = max(embedding.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot(), tiny)
        return embedding.map { Float(Double($0) / norm) }
    }

    /// The most probable labels of a picture, best first; equal ones in the labels' order.
    ///
    /// - Parameters:
    ///   - image: normalised embedding
    ///   - classes: normalised embedding of each label
    ///   - logitScale: factor of the cosines before the softmax
    public static func rank(_ image: [Float], classes: [[Float]], logitScale: Double, top: Int) -> [Prediction] {
        let cosines = classes.map { dot($0, image) }
        guard let largest = cosines.max() else { return [] }
        let odds = cosines.map { exp(logitScale * ($0 - largest)) }
        let sum = odds.reduce(0, +)
        let order = cosines.indices.sorted { cosines[$0] != cosines[$1] ? cosines[$0] > cosines[$1] : $0 < $1 }
        return order.prefix(max(top, 0)).map { Prediction(label: $0, probability: odds[$0] / sum, cosine: cosines[$0]) }
    }

    /// Of an embedding of any length with one of unit length.
    public static func cosine(_ embedding: [Float], _ unit: [Float]) -> Double { dot(normalized(embedding), unit) }

    static func dot(_ a: [Float], _ b: [Float]) -> Double {
        zip(a, b).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
    }
}
