// Declarations for type checking; see README.md. Builders, state and the environment; the views are in SwiftUIViews.swift.
@_exported import Observation
@_exported import UIKit
import UniformTypeIdentifiers

@MainActor @preconcurrency public protocol View {
    associatedtype Body: View
    @ViewBuilder @MainActor @preconcurrency var body: Body { get }
}
extension Never: View { public var body: Never { declared() } }
/// What has no body of its own; a name of these declarations, not of SwiftUI.
@MainActor @preconcurrency public protocol PrimitiveView: View where Body == Never {}
extension PrimitiveView { public var body: Never { declared() } }

public struct EmptyView: PrimitiveView { public init() {} }
public struct TupleView<T>: PrimitiveView {}
public struct ConditionalContent<First, Second>: PrimitiveView {}
extension Optional: View where Wrapped: View { public var body: Never { declared() } }

@resultBuilder public struct ViewBuilder {
    public static func buildBlock() -> EmptyView { declared() }
    public static func buildBlock<Content: View>(_ content: Content) -> Content { content }
    public static func buildBlock<each Content: View>(_ content: repeat each Content) -> TupleView<(repeat each Content)> { declared() }
    public static func buildExpression<Content: View>(_ content: Content) -> Content { content }
    public static func buildIf<Content: View>(_ content: Content?) -> Content? { content }
    public static func buildEither<First: View, Second: View>(first: First) -> ConditionalContent<First, Second> { declared() }
    public static func buildEither<First: View, Second: View>(second: Second) -> ConditionalContent<First, Second> { declared() }
    public static func buildLimitedAvailability<Content: View>(_ content: Content) -> Content { content }
}

@MainActor @preconcurrency public protocol Scene { associatedtype Body }
@resultBuilder public struct SceneBuilder { public static func buildBlock<Content: Scene>(_ content: Content) -> Content { content } }
public struct WindowGroup<Content: View>: Scene {
    public typealias Body = Never
    public init(@ViewBuilder content: () -> Content) { declared() }
}
@MainActor @preconcurrency public protocol App {
    associatedtype Body: Scene
    @SceneBuilder @MainActor @preconcurrency var body: Body { get }
    @MainActor @preconcurrency init()
}
extension App { @MainActor @preconcurrency public static func main() { declared() } }

@propertyWrapper public struct State<Value> {
    public init(wrappedValue value: Value) { declared() }
    public var wrappedValue: Value { get { declared() } nonmutating set { declared() } }
    public var projectedValue: Binding<Value> { declared() }
}
@propertyWrapper @dynamicMemberLookup public struct Binding<Value> {
    public init(get: @escaping () -> Value, set: @escaping (Value) -> Void) { declared() }
    public init(projectedValue: Binding<Value>) { declared() }
    public var wrappedValue: Value { get { declared() } nonmutating set { declared() } }
    public var projectedValue: Binding<Value> { self }
    public subscript<Subject>(dynamicMember keyPath: WritableKeyPath<Value, Subject>) -> Binding<Subject> { declared() }
}
@propertyWrapper @dynamicMemberLookup public struct Bindable<Value: AnyObject & Observable> {
    public init(wrappedValue: Value) { declared() }
    public var wrappedValue: Value { get { declared() } set { declared() } }
    public var projectedValue: Bindable<Value> { self }
    public subscript<Subject>(dynamicMember keyPath: ReferenceWritableKeyPath<Value, Subject>) -> Binding<Subject> { declared() }
}
@propertyWrapper public struct Environment<Value> {
    public init(_ keyPath: KeyPath<EnvironmentValues, Value>) { declared() }
    public init(_ objectType: Value.Type) where Value: AnyObject & Observable { declared() }
    public var wrappedValue: Value { declared() }
}
public enum ScenePhase: Sendable { case background, inactive, active }
@MainActor @preconcurrency public struct DismissAction { public func callAsFunction() { declared() } }
@MainActor @preconcurrency public struct OpenURLAction { public func callAsFunction(_ url: URL) { declared() } }
public struct EnvironmentValues {
    public var scenePhase: ScenePhase { declared() }
    public var dismiss: DismissAction { declared() }
    public var openURL: OpenURLAction { declared() }
}

@MainActor @preconcurrency public protocol UIViewRepresentable: PrimitiveView {
    associatedtype UIViewType: UIView
    @MainActor @preconcurrency func makeUIView(context: Context) -> UIViewType
    @MainActor @preconcurrency func updateUIView(_ uiView: UIViewType, context: Context)
    typealias Context = UIViewRepresentableContext<Self>
}
public struct UIViewRepresentableContext<Representable: UIViewRepresentable> {}

extension View {
    public func task(priority: TaskPriority = .userInitiated, @_inheritActorContext _ action: @escaping @Sendable () async -> Void) -> some View { self }
    public func task<T: Equatable>(id value: T, priority: TaskPriority = .userInitiated, @_inheritActorContext _ action: @escaping @Sendable () async -> Void) -> some View { self }
    public func onChange<V: Equatable>(of value: V, initial: Bool = false, _ action: @escaping (V, V) -> Void) -> some View { self }
    public func onAppear(perform action: (() -> Void)? = nil) -> some View { self }
    public func onDisappear(perform action: (() -> Void)? = nil) -> some View { self }
    public func onSubmit(_ action: @escaping () -> Void) -> some View { self }
    public func environment<T: AnyObject & Observable>(_ object: T?) -> some View { self }
    public func sheet<Content: View>(isPresented: Binding<Bool>, onDismiss: (() -> Void)? = nil, @ViewBuilder content: @escaping () -> Content) -> some View { self }
    public func fileImporter(isPresented: Binding<Bool>, allowedContentTypes: [UTType], onCompletion: @escaping (Result<URL, any Error>) -> Void) -> some View { self }
    public func toolbar<Content: View>(@ViewBuilder content: () -> Content) -> some View { self }
    public func navigationTitle(_ titleKey: LocalizedStringKey) -> some View { self }
    public func tabItem<V: View>(@ViewBuilder _ label: () -> V) -> some View { self }
    public func tag<V: Hashable>(_ tag: V, includeOptional: Bool = true) -> some View { self }
    public func disabled(_ disabled: Bool) -> some View { self }
    public func accessibilityLabel(_ label: LocalizedStringKey) -> some View { self }
}
