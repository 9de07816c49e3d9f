// swift-tools-version: 6.0
import PackageDescription

#if os(Linux)
// Swift 6.0's libswiftObservation.so refers to a function that no library has.
let testLinker: [LinkerSetting] = [.unsafeFlags(["-Xlinker", "--allow-shlib-undefined"])]
#else
let testLinker: [LinkerSetting] = []
#endif

let package = Package(
    name: "MobileCLIPKit",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [
        .library(name: "MobileCLIPCore", targets: ["MobileCLIPCore"]),
        .library(name: "MobileCLIPAppCore", targets: ["MobileCLIPAppCore"]),
        .library(name: "MobileCLIPCoreML", targets: ["MobileCLIPCoreML"]),
    ],
    targets: [
        .target(name: "MobileCLIPCore", resources: [.process("Resources/entities.tsv")]),
        .target(name: "MobileCLIPAppCore", dependencies: ["MobileCLIPCore"]),
        .target(name: "MobileCLIPCoreML", dependencies: ["MobileCLIPCore"]),
        .target(name: "MobileCLIPTestSupport", dependencies: ["MobileCLIPCore"], path: "Tests/Support"),
        .testTarget(name: "MobileCLIPCoreTests", dependencies: ["MobileCLIPCore", "MobileCLIPTestSupport"]),
        .testTarget(name: "MobileCLIPAppCoreTests", dependencies: ["MobileCLIPAppCore", "MobileCLIPTestSupport"], linkerSettings: testLinker),
    ]
)
