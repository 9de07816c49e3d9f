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

/// The tabs, and what must not depend on which of them is in front.
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
            switch phase {
            case .active:
                model.bundles.refresh() // Files may have brought a bundle
                if let ready = model.bundles.ready { Task { await model.photos.resume(ready.service) } }
            case .background: BackgroundTask.run("index") { await model.photos.pause() }
            default: break
            }
        }
        .onChange(of: model.photos.isIndexing || model.bench.isRunning) { _, isBusy in UIApplication.shared.isIdleTimerDisabled = isBusy }
    }
}

/// Time from the system to end what is going on; an app that takes more of it is killed.
@MainActor
private final class BackgroundTask {
    private var task = UIBackgroundTaskIdentifier.invalid

    static func run(_ name: String, _ work: @escaping @MainActor () async -> Void) {
        let one = BackgroundTask()
        one.task = UIApplication.shared.beginBackgroundTask(withName: name) { one.end() }
        Task {
            await work()
            one.end()
        }
    }

    private func end() {
        guard task != .invalid else { return }
        UIApplication.shared.endBackgroundTask(task)
        task = .invalid
    }
}
