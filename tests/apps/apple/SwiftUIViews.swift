// Declarations for type checking; see README.md. The second file of the module SwiftUI.

public struct LocalizedStringKey: ExpressibleByStringInterpolation { public init(stringLiteral value: String) { declared() } }

public struct Font: Sendable {
    public static let footnote = Font()
    public static let headline = Font()
}
public protocol ShapeStyle: Sendable {}
public struct HierarchicalShapeStyle: ShapeStyle {}
extension ShapeStyle where Self == HierarchicalShapeStyle { public static var secondary: HierarchicalShapeStyle { declared() } }
public struct Color: ShapeStyle, PrimitiveView {
    public static let gray = Color()
    public func opacity(_ opacity: Double) -> Color { declared() }
}
extension ShapeStyle where Self == Color {
    public static var red: Color { declared() }
    public static var orange: Color { declared() }
    public static var yellow: Color { declared() }
}

public struct Text: PrimitiveView {
    public init(_ key: LocalizedStringKey) { declared() }
    @_disfavoredOverload public init<S: StringProtocol>(_ content: S) { declared() }
    public init<F: FormatStyle>(_ input: F.FormatInput, format: F) where F.FormatInput: Equatable, F.FormatOutput == String { declared() }
}
public struct Image: PrimitiveView {
    public init(uiImage: UIImage) { declared() }
    public func resizable() -> Image { self }
}
public struct Label<Title: View, Icon: View>: PrimitiveView {}
extension Label where Title == Text, Icon == Image {
    public init(_ titleKey: LocalizedStringKey, systemImage name: String) { declared() }
    @_disfavoredOverload public init<S: StringProtocol>(_ title: S, systemImage name: String) { declared() }
}
public struct Button<Content: View>: PrimitiveView {
    public init(action: @escaping @MainActor () -> Void, @ViewBuilder label: () -> Content) { declared() }
}
extension Button where Content == Text { public init(_ titleKey: LocalizedStringKey, action: @escaping @MainActor () -> Void) { declared() } }
extension Button where Content == Label<Text, Image> {
    public init(_ titleKey: LocalizedStringKey, systemImage: String, action: @escaping @MainActor () -> Void) { declared() }
}
public struct Spacer: PrimitiveView { public init() {} }

public enum HorizontalAlignment: Sendable { case leading, center, trailing }
public enum VerticalAlignment: Sendable { case top, center, bottom }
public enum TextAlignment: Sendable { case leading, center, trailing }
public struct Alignment: Sendable { public static let center = Alignment() }
public struct VStack<Content: View>: PrimitiveView {
    public init(alignment: HorizontalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> Content) { declared() }
}
public struct HStack<Content: View>: PrimitiveView {
    public init(alignment: VerticalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> Content) { declared() }
}
public struct ScrollView<Content: View>: PrimitiveView { public init(@ViewBuilder content: () -> Content) { declared() } }
public struct GridItem: Sendable {
    public enum Size: Sendable { case fixed(CGFloat), flexible(minimum: CGFloat = 10, maximum: CGFloat = .infinity), adaptive(minimum: CGFloat, maximum: CGFloat = .infinity) }
    public init(_ size: Size = .flexible(), spacing: CGFloat? = nil) { declared() }
}
public struct LazyVGrid<Content: View>: PrimitiveView {
    public init(columns: [GridItem], alignment: HorizontalAlignment = .center, spacing: CGFloat? = nil, @ViewBuilder content: () -> Content) { declared() }
}
public struct NavigationStack<Content: View>: PrimitiveView { public init(@ViewBuilder root: () -> Content) { declared() } }
public struct TabView<Content: View>: PrimitiveView { public init(@ViewBuilder content: () -> Content) { declared() } }
public struct List<Content: View>: PrimitiveView { public init(@ViewBuilder content: () -> Content) { declared() } }
public struct Section<Parent, Content, Footer>: PrimitiveView {}
extension Section where Parent == Text, Content: View, Footer == EmptyView {
    public init(_ titleKey: LocalizedStringKey, @ViewBuilder content: () -> Content) { declared() }
}
extension Section where Parent == EmptyView, Content: View, Footer: View {
    public init(@ViewBuilder content: () -> Content, @ViewBuilder footer: () -> Footer) { declared() }
}

@MainActor @preconcurrency public protocol DynamicViewContent: View {}
public struct ForEach<Data: RandomAccessCollection, ID: Hashable, Content: View>: PrimitiveView, DynamicViewContent {
    public init(_ data: Data, id: KeyPath<Data.Element, ID>, @ViewBuilder content: @escaping (Data.Element) -> Content) { declared() }
}
extension ForEach where Data.Element: Identifiable, ID == Data.Element.ID {
    public init(_ data: Data, @ViewBuilder content: @escaping (Data.Element) -> Content) { declared() }
}
extension DynamicViewContent { public func onDelete(perform action: ((IndexSet) -> Void)?) -> some DynamicViewContent { self } }

public struct TextField<Label: View>: PrimitiveView {}
extension TextField where Label == Text { public init(_ titleKey: LocalizedStringKey, text: Binding<String>) { declared() } }
public struct TextEditor: PrimitiveView { public init(text: Binding<String>) { declared() } }
public struct Picker<Label: View, SelectionValue: Hashable, Content: View>: PrimitiveView {}
extension Picker where Label == Text {
    public init(_ titleKey: LocalizedStringKey, selection: Binding<SelectionValue>, @ViewBuilder content: () -> Content) { declared() }
}
public struct ProgressView<Label: View>: PrimitiveView {}
extension ProgressView where Label == EmptyView { public init<V: BinaryFloatingPoint>(value: V?, total: V = 1.0) { declared() } }
extension ProgressView where Label == Text {
    public init(_ titleKey: LocalizedStringKey) { declared() }
    @_disfavoredOverload public init<S: StringProtocol>(_ title: S) { declared() }
}
public struct LabeledContent<Label: View, Content: View>: PrimitiveView {}
extension LabeledContent where Label == Text, Content == Text { public init<S: StringProtocol>(_ titleKey: LocalizedStringKey, value: S) { declared() } }
public struct ContentUnavailableView<Label: View>: PrimitiveView {}
extension ContentUnavailableView where Label == Text {
    public init(_ title: LocalizedStringKey, systemImage name: String, description: Text? = nil) { declared() }
}

public struct Edge {
    public struct Set: OptionSet, Sendable {
        public let rawValue: Int
        public init(rawValue: Int) { self.rawValue = rawValue }
        public static let all = Edge.Set(rawValue: 15)
        public static let horizontal = Edge.Set(rawValue: 10)
    }
}
public enum ContentMode: Sendable { case fit, fill }
public protocol TextFieldStyle {}
public struct RoundedBorderTextFieldStyle: TextFieldStyle {}
extension TextFieldStyle where Self == RoundedBorderTextFieldStyle { public static var roundedBorder: RoundedBorderTextFieldStyle { declared() } }
public enum SubmitLabel: Sendable { case done, search }

extension View {
    public func padding(_ edges: Edge.Set = .all, _ length: CGFloat? = nil) -> some View { self }
    public func padding(_ length: CGFloat) -> some View { self }
    public func font(_ font: Font?) -> some View { self }
    public func foregroundStyle<S: ShapeStyle>(_ style: S) -> some View { self }
    public func background<S: ShapeStyle>(_ style: S, ignoresSafeAreaEdges edges: Edge.Set = .all) -> some View { self }
    public func frame(width: CGFloat? = nil, height: CGFloat? = nil, alignment: Alignment = .center) -> some View { self }
    public func lineLimit(_ number: Int?) -> some View { self }
    public func monospacedDigit() -> some View { self }
    public func multilineTextAlignment(_ alignment: TextAlignment) -> some View { self }
    public func overlay<V: View>(alignment: Alignment = .center, @ViewBuilder content: () -> V) -> some View { self }
    public func clipped(antialiased: Bool = false) -> some View { self }
    public func aspectRatio(_ aspectRatio: CGFloat? = nil, contentMode: ContentMode) -> some View { self }
    public func scaledToFill() -> some View { self }
    public func textFieldStyle<S: TextFieldStyle>(_ style: S) -> some View { self }
    public func submitLabel(_ submitLabel: SubmitLabel) -> some View { self }
}
