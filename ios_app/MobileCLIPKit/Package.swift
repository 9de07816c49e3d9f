// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "MobileCLIPKit",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "MobileCLIPCore", targets: ["MobileCLIPCore"])],
    targets: [
        .target(name: "MobileCLIPCore", resources: [.process("Resources/entities.tsv")]),
        .testTarget(name: "MobileCLIPCoreTests", dependencies: ["MobileCLIPCore"]),
    ]
)
