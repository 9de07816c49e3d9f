import MobileCLIPAppCore
import SwiftUI
import UIKit

@main
struct MobileCLIPApp: App {
    @State private var model = AppModel()
    private let launch: Launch

    init() {
        launch = Launch(CommandLine.arguments)
    }

    var body: some Scene {
        WindowGroup {
            switch launch {
            case .person: MainView().environment(model)
            case .host(let request): HeadlessView(phone: model.phone, request: request)
            case .wrong(let reason): HeadlessView(phone: model.phone, reason: reason)
            }
        }
    }
}

/// Who started the app.
private enum Launch {
    case person
    case host(LaunchRequest)
    case wrong(String)

    init(_ arguments: [String]) {
        do {
            self = try LaunchRequest.parse(arguments).map { .host($0) } ?? .person
        } catch {
            self = .wrong(explanation(of: error))
        }
    }
}

struct MainView: View {
    @Environment(AppModel.self) private var model
    @Environment(\.scenePhase) private var phase

    var body: some View {
        TabView {
            ClassifyView().tabItem { Label("Camera", systemImage: "camera") }
            SearchView().tabItem { Label("Photos", systemImage: "photo.on.rectangle") }
            BenchView().tabItem { Label("Benchmark", systemImage: "stopwatch") }
            SettingsView().tabItem { Label("Settings", systemImage: "gearshape") }
        }
        .task { model.bundles.refresh() }
        .onChange(of: phase) { _, phase in
            if phase == .active { model.bundles.refresh() } // Files may have brought a bundle
        }
    }
}
