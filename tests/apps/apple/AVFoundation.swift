// Declarations for type checking; see README.md.
@_exported import CoreMedia
@_exported import UIKit

public struct AVMediaType: Hashable, Sendable { public static let video = AVMediaType() }
public enum AVLayerVideoGravity: Sendable { case resizeAspect, resizeAspectFill, resize }

open class AVCaptureInput: NSObject {}
open class AVCaptureOutput: NSObject { open func connection(with mediaType: AVMediaType) -> AVCaptureConnection? { declared() } }
open class AVCaptureConnection: NSObject {
    open func isVideoRotationAngleSupported(_ videoRotationAngle: CGFloat) -> Bool { declared() }
    open var videoRotationAngle: CGFloat { get { declared() } set { declared() } }
}
open class AVCaptureDevice: NSObject {
    public struct DeviceType: Sendable { public static let builtInWideAngleCamera = DeviceType() }
    public enum Position: Int, Sendable { case unspecified, back, front }
    open class func `default`(_ deviceType: DeviceType, for mediaType: AVMediaType?, position: Position) -> AVCaptureDevice? { declared() }
    open class func `default`(for mediaType: AVMediaType) -> AVCaptureDevice? { declared() }
    open class func requestAccess(for mediaType: AVMediaType) async -> Bool { declared() }
    open class RotationCoordinator: NSObject {
        public init(device: AVCaptureDevice, previewLayer: CALayer?) { declared() }
        open var videoRotationAngleForHorizonLevelPreview: CGFloat { declared() }
        open var videoRotationAngleForHorizonLevelCapture: CGFloat { declared() }
    }
}
open class AVCaptureDeviceInput: AVCaptureInput { public init(device: AVCaptureDevice) throws { declared() } }
open class AVCaptureSession: NSObject {
    public struct Preset: Sendable { public static let vga640x480 = Preset() }
    open var sessionPreset: Preset { get { declared() } set { declared() } }
    open var isRunning: Bool { declared() }
    open func canAddInput(_ input: AVCaptureInput) -> Bool { declared() }
    open func addInput(_ input: AVCaptureInput) { declared() }
    open func canAddOutput(_ output: AVCaptureOutput) -> Bool { declared() }
    open func addOutput(_ output: AVCaptureOutput) { declared() }
    open func beginConfiguration() { declared() }
    open func commitConfiguration() { declared() }
    open func startRunning() { declared() }
    open func stopRunning() { declared() }
}
public protocol AVCaptureVideoDataOutputSampleBufferDelegate: NSObjectProtocol {
    func captureOutput(_ output: AVCaptureOutput, didOutput sampleBuffer: CMSampleBuffer, from connection: AVCaptureConnection)
}
open class AVCaptureVideoDataOutput: AVCaptureOutput {
    open var videoSettings: [String: Any]! { get { declared() } set { declared() } }
    open var alwaysDiscardsLateVideoFrames: Bool { get { declared() } set { declared() } }
    open func setSampleBufferDelegate(_ delegate: (any AVCaptureVideoDataOutputSampleBufferDelegate)?, queue: DispatchQueue?) { declared() }
}
@MainActor open class AVCaptureVideoPreviewLayer: CALayer {
    open var session: AVCaptureSession? { get { declared() } set { declared() } }
    open var videoGravity: AVLayerVideoGravity { get { declared() } set { declared() } }
    open var connection: AVCaptureConnection? { declared() }
}
