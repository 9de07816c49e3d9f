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
    private var observations: [NSKeyValueObservation] = []

    override class var layerClass: AnyClass { AVCaptureVideoPreviewLayer.self }

    private var preview: AVCaptureVideoPreviewLayer? { layer as? AVCaptureVideoPreviewLayer }

    func show(_ camera: Camera) {
        self.camera = camera
        preview?.session = camera.session
        preview?.videoGravity = .resizeAspectFill
        camera.whenStarted { [weak self] in self?.setNeedsLayout() }
    }

    override func layoutSubviews() {
        super.layoutSubviews()
        if rotation == nil, let device = Camera.device { watch(AVCaptureDevice.RotationCoordinator(device: device, previewLayer: preview)) }
        guard let rotation else { return }
        let angle = rotation.videoRotationAngleForHorizonLevelPreview
        if let connection = preview?.connection, connection.isVideoRotationAngleSupported(angle) { connection.videoRotationAngle = angle }
        camera?.turn(by: rotation.videoRotationAngleForHorizonLevelCapture)
    }

    /// The coordinator may know its new angles later than the system says that the phone was turned, and tells.
    private func watch(_ coordinator: AVCaptureDevice.RotationCoordinator) {
        rotation = coordinator
        let angles: [KeyPath<AVCaptureDevice.RotationCoordinator, CGFloat>] = [\.videoRotationAngleForHorizonLevelPreview, \.videoRotationAngleForHorizonLevelCapture]
        observations = angles.map { angle in
            coordinator.observe(angle) { @Sendable [weak self] _, _ in
                Task { @MainActor [weak self] in self?.setNeedsLayout() }
            }
        }
    }
}
