import MobileCLIPAppCore
import MobileCLIPCore
import MobileCLIPCoreML
import Photos
import PhotosUI
import SwiftUI
import UIKit

/// Photos found by words.
struct SearchView: View {
    @Environment(AppModel.self) private var model
    @Environment(\.scenePhase) private var phase
    @State private var text = ""
    @State private var access = PhotoKitLibrary.access

    var body: some View {
        NavigationStack {
            content.navigationTitle("Photos")
        }
    }

    @ViewBuilder private var content: some View {
        if let ready = model.bundles.ready {
            VStack(spacing: 8) {
                ReproductionBanner(ready: ready)
                AccessNotice(access: access)
                TextField("A red bus at night", text: $text)
                    .textFieldStyle(.roundedBorder)
                    .submitLabel(.search)
                    .onSubmit { Task { await model.photos.search(text, ready.service) } }
                    .padding(.horizontal)
                IndexStatus(photos: model.photos, ready: ready) {
                    if access == .unknown { access = await PhotoKitLibrary.askForAccess() }
                    model.photos.start(ready.service)
                }
                PhotoGrid(photos: model.photos.results)
            }
            .task(id: ready.bundle.manifest.embeddingSpace) { await model.photos.open(ready.bundle.manifest) }
            .onChange(of: phase) { _, phase in
                if phase == .active { access = PhotoKitLibrary.access }
            }
        } else {
            BundleStatus(stage: model.bundles.stage)
        }
    }
}

private struct AccessNotice: View {
    let access: PhotoKitLibrary.Access
    @Environment(\.openURL) private var openURL

    var body: some View {
        switch access {
        case .denied:
            Banner(text: "The app may not see your photos.")
            Button("Open Settings") {
                if let url = URL(string: UIApplication.openSettingsURLString) { openURL(url) }
            }
        case .limited:
            Banner(text: "Only the photos that you chose are searched.")
            Button("Choose more photos") { LimitedPicker.show() }
        case .all, .unknown: EmptyView()
        }
    }
}

/// The system's sheet for limited access, which wants a view controller.
@MainActor
private enum LimitedPicker {
    static func show() {
        let scenes = UIApplication.shared.connectedScenes.compactMap { $0 as? UIWindowScene }
        guard let controller = scenes.first?.keyWindow?.rootViewController else { return }
        PHPhotoLibrary.shared().presentLimitedLibraryPicker(from: controller)
    }
}

private struct IndexStatus: View {
    let photos: PhotoSearch
    let ready: BundleChoice.Ready
    let update: @MainActor () async -> Void

    var body: some View {
        VStack(spacing: 4) {
            if photos.isIndexing {
                ProgressView(value: photos.progress.fraction)
                Text("\(photos.progress.done) of \(photos.progress.total) photos").font(.footnote).monospacedDigit()
                if !photos.progress.waiting.isEmpty { Text("Waiting: \(photos.progress.waiting)").font(.footnote) }
                Button("Stop") { photos.stop() }
            } else {
                Text("\(photos.indexed) photos in the index").font(.footnote).monospacedDigit()
                Button("Update the index") { Task { await update() } }.disabled(photos.isDamaged)
            }
            if !photos.problem.isEmpty { Text(photos.problem).font(.footnote).foregroundStyle(.red) }
            if photos.isDamaged { Button("Delete the index") { Task { await photos.deleteIndex(ready.bundle.manifest) } } }
        }
        .padding(.horizontal)
    }
}

private struct PhotoGrid: View {
    let photos: [LibraryPhoto]

    var body: some View {
        ScrollView {
            LazyVGrid(columns: [GridItem(.adaptive(minimum: 100), spacing: 2)], spacing: 2) {
                ForEach(photos, id: \.id) { Thumbnail(id: $0.id) }
            }
        }
    }
}

private struct Thumbnail: View {
    private static let pixels = 300
    let id: String
    @State private var image: UIImage?

    var body: some View {
        Color.gray.opacity(0.2)
            .aspectRatio(1, contentMode: .fit)
            .overlay {
                if let image { Image(uiImage: image).resizable().scaledToFill() }
            }
            .clipped()
            .task(id: id) { image = await PhotoKitLibrary().image(id, shortestSide: Thumbnail.pixels) }
            .accessibilityLabel("Photo")
    }
}
