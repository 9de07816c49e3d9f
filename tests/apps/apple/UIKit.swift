// Declarations for type checking; see README.md.
@_exported import CoreGraphics

@MainActor open class CALayer {}

@MainActor open class UIView {
    public init(frame: CGRect) { declared() }
    public convenience init() { declared() }
    open class var layerClass: AnyClass { declared() }
    open var layer: CALayer { declared() }
    open func layoutSubviews() { declared() }
    open func setNeedsLayout() { declared() }
}
@MainActor open class UIViewController {}
@MainActor open class UIWindow: UIView { open var rootViewController: UIViewController? { declared() } }
@MainActor open class UIScene: Hashable {
    public nonisolated static func == (lhs: UIScene, rhs: UIScene) -> Bool { declared() }
    public nonisolated func hash(into hasher: inout Hasher) { declared() }
}
@MainActor open class UIWindowScene: UIScene { open var keyWindow: UIWindow? { declared() } }

public struct UIBackgroundTaskIdentifier: Equatable, Sendable { public static let invalid = UIBackgroundTaskIdentifier() }
@MainActor open class UIApplication {
    open class var shared: UIApplication { declared() }
    open var isIdleTimerDisabled: Bool { get { declared() } set { declared() } }
    open var connectedScenes: Set<UIScene> { declared() }
    open func beginBackgroundTask(withName taskName: String?, expirationHandler handler: (@MainActor @Sendable () -> Void)? = nil) -> UIBackgroundTaskIdentifier { declared() }
    open func endBackgroundTask(_ identifier: UIBackgroundTaskIdentifier) { declared() }
    public nonisolated static let openSettingsURLString = ""
    public nonisolated static let willResignActiveNotification = Notification.Name("")
    public nonisolated static let didBecomeActiveNotification = Notification.Name("")
    public nonisolated static let didReceiveMemoryWarningNotification = Notification.Name("")
}

@MainActor open class UIDevice {
    public enum BatteryState: Int, Sendable { case unknown, unplugged, charging, full }
    open class var current: UIDevice { declared() }
    open var name: String { declared() }
    open var systemName: String { declared() }
    open var systemVersion: String { declared() }
    open var identifierForVendor: UUID? { declared() }
    open var isBatteryMonitoringEnabled: Bool { get { declared() } set { declared() } }
    open var batteryLevel: Float { declared() }
    open var batteryState: BatteryState { declared() }
}

public final class UIImage: @unchecked Sendable {
    public enum Orientation: Int, Sendable { case up, down, left, right, upMirrored, downMirrored, leftMirrored, rightMirrored }
    public var cgImage: CGImage? { declared() }
    public var imageOrientation: Orientation { declared() }
}
