/// What CoreML may choose from; the raw value is the benchmark's `provider`.
public enum ComputeUnit: String, CaseIterable, Codable, Sendable, Identifiable {
    case all, cpuAndNeuralEngine, cpuAndGPU, cpuOnly

    public var id: String { rawValue }

    public var title: String {
        switch self {
        case .all: "All"
        case .cpuAndNeuralEngine: "CPU and Neural Engine"
        case .cpuAndGPU: "CPU and GPU"
        case .cpuOnly: "CPU only"
        }
    }
}
