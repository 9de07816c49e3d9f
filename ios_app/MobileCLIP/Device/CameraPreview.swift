import AVFoundation
import SwiftUI
import UIKit

/// What the camera sees, upright however the phone is held.
struct CameraPreview: UIViewRepresentable {
    let camera: Camera

    func makeUIView(context: Context) -> PreviewView {
        let view = PreviewView()
        view.show(camera)
        return view
    }

    func updateUIView(_ view: PreviewView, context: Context) {}
}

final class PreviewView: UIView {
    private var camera: Camera?
    private var rotation: AVCaptureDevice.RotationCoordinator?

    override class var layerClass: AnyClass { AVCaptureVideoPreviewLayer.self }

    private var preview: AVCaptureVideoPreviewLayer? { layer as? AVCaptureVideoPreviewLayer }

    func show(_ camera: Camera) {
        self.camera = camera
        preview?.session = camera.session
        preview?.videoGravity = .resizeAspectFill
        UIDevice.current.beginGeneratingDeviceOrientationNotifications()
        _ = NotificationCenter.default.addObserver(forName: UIDevice.orientationDidChangeNotification, object: nil, queue: .main) { [weak self] _ in
            MainActor.assumeIsolated { self?.setNeedsLayout() }
        }
    }

    override func layoutSubviews() {
        super.layoutSubviews()
        if rotation == nil, let device = Camera.device {
            rotation = AVCaptureDevice.RotationCoordinator(device: device, previewLayer: preview)
        }
        guard let rotation else { return }
        let angle = rotation.videoRotationAngleForHorizonLevelPreview
        if let connection = preview?.connection, connection.isVideoRotationAngleSupported(angle) { connection.videoRotationAngle = angle }
        camera?.turn(by: rotation.videoRotationAngleForHorizonLevelCapture)
    }
}
