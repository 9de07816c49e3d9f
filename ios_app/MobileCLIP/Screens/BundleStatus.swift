import MobileCLIPAppCore
import MobileCLIPCore
import SwiftUI

/// What stands in a screen's place while no bundle can be used.
struct BundleStatus: View {
    let stage: BundleChoice.Stage

    var body: some View {
        switch stage {
        case .empty:
            ContentUnavailableView(
                "No model", systemImage: "shippingbox",
                description: Text("Add a bundle in Settings: a folder or zip that `mobileclip export --target coreml` has made."))
        case .loading(let text): ProgressView(text)
        case .failed(let reason): ContentUnavailableView("The model cannot be used", systemImage: "exclamationmark.triangle", description: Text(reason))
        case .ready: EmptyView()
        }
    }
}

/// A warning where this phone computes something else than the exported model.
struct ReproductionBanner: View {
    let ready: BundleChoice.Ready

    var body: some View {
        if !ready.bundle.manifest.model.trained { Banner(text: "Untrained weights: what it says means nothing.") }
        if !ready.reproduces { Banner(text: "This phone does not reproduce the model's own outputs; see Settings.") }
    }
}

struct Banner: View {
    let text: String

    var body: some View {
        Label(text, systemImage: "exclamationmark.triangle.fill").font(.footnote).padding(8).background(.yellow.opacity(0.3))
    }
}
