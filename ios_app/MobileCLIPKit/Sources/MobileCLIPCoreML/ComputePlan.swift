#if canImport(CoreML)
import CoreML
import Foundation
import MobileCLIPCore

/// Where CoreML wants to run each operator of a compiled model, and what share of the cost it expects there; from iOS 17.4 on.
@available(iOS 17.4, macOS 14.4, *)
enum ComputePlan {
    static func operators(compiled: URL, units: String) async throws -> [OperatorRuns] {
        let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: CoreMLSession.configuration(units))
        guard case .program(let program) = plan.modelStructure, let main = program.functions["main"] else { return [] }
        return main.block.operations.compactMap { operation in
            guard let usage = plan.deviceUsage(for: operation) else { return nil } // constants run nowhere
            return OperatorRuns(
                name: operation.outputs.first?.name ?? "", kind: operation.operatorName, where: name(usage.preferred),
                share: plan.estimatedCost(of: operation).map { min(max($0.weight, 0), 1) })
        }
    }

    private static func name(_ device: MLComputeDevice) -> String {
        switch device {
        case .cpu: "cpu"
        case .gpu: "gpu"
        case .neuralEngine: "neuralEngine"
        @unknown default: "unknown"
        }
    }
}
#endif
