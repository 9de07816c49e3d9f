import AVFoundation
import MobileCLIPCore
import MobileCLIPCoreML

/// The back camera: a few pictures a second for the model, and a session for the preview.
final class Camera: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate, @unchecked Sendable { // what changes is used on `queue` only
    private static let pause = 0.1

    let session = AVCaptureSession()
    private let queue = DispatchQueue(label: "org.mobileclip.camera")
    private let output = AVCaptureVideoDataOutput()
    private var isConfigured = false
    private var last = Date.distantPast
    private var angle: CGFloat?
    private var run = 0
    private var continuation: AsyncStream<Picture>.Continuation?
    private var started: (@MainActor () -> Void)?

    static var device: AVCaptureDevice? {
        AVCaptureDevice.default(.builtInWideAngleCamera, for: .video, position: .back) ?? AVCaptureDevice.default(for: .video)
    }

    /// Ask for permission where that was not done, and start.
    ///
    /// - Returns: a number for `stop`, and pictures, the newest only; those that nobody took are gone. An earlier stream ends.
    /// - Throws: `MobileCLIPError` without a camera or permission
    func start() async throws -> (run: Int, pictures: AsyncStream<Picture>) {
        guard Camera.device != nil else { throw MobileCLIPError("this device has no camera; search your photos instead") }
        guard await AVCaptureDevice.requestAccess(for: .video) else {
            throw MobileCLIPError("the app may not use the camera; allow it in Settings, Privacy & Security, Camera")
        }
        let (pictures, continuation) = AsyncStream.makeStream(of: Picture.self, bufferingPolicy: .bufferingNewest(1))
        let run = try await withCheckedThrowingContinuation { (done: CheckedContinuation<Int, any Error>) in
            queue.async { done.resume(with: Result { try self.begin(continuation) }) }
        }
        return (run, pictures)
    }

    /// Stop, unless somebody else has started it since.
    func stop(_ run: Int) {
        queue.async { if run == self.run { self.session.stopRunning() } }
    }

    /// Have something done whenever the camera has started: not before has a preview a connection that can be turned.
    func whenStarted(_ work: @escaping @MainActor () -> Void) {
        queue.async {
            self.started = work
            if self.session.isRunning { Task { @MainActor in work() } }
        }
    }

    /// Turn the pictures; by the angle that the preview's rotation coordinator gives.
    func turn(by angle: CGFloat) {
        queue.async {
            self.angle = angle
            self.applyAngle()
        }
    }

    private func applyAngle() {
        guard let angle, let connection = output.connection(with: .video), connection.isVideoRotationAngleSupported(angle) else { return }
        connection.videoRotationAngle = angle
    }

    private func begin(_ continuation: AsyncStream<Picture>.Continuation) throws -> Int {
        self.continuation?.finish()
        self.continuation = continuation
        if !isConfigured { try configure() }
        if !session.isRunning { session.startRunning() }
        if let started { Task { @MainActor in started() } }
        run += 1
        return run
    }

    private func configure() throws {
        session.beginConfiguration()
        defer { session.commitConfiguration() }
        session.sessionPreset = .vga640x480
        guard let device = Camera.device, let input = try? AVCaptureDeviceInput(device: device), session.canAddInput(input), session.canAddOutput(output) else {
            throw MobileCLIPError("the camera cannot be used now; close the app that uses it")
        }
        session.addInput(input)
        output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
        output.alwaysDiscardsLateVideoFrames = true
        output.setSampleBufferDelegate(self, queue: queue)
        session.addOutput(output)
        applyAngle()
        isConfigured = true
    }

    func captureOutput(_ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer, from connection: AVCaptureConnection) {
        guard Date().timeIntervalSince(last) >= Camera.pause, let frame = CMSampleBufferGetImageBuffer(sampleBuffer), let picture = try? Picture(frame) else { return }
        last = Date()
        continuation?.yield(picture)
    }
}
