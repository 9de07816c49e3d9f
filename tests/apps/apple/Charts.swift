// Declarations for type checking; see README.md.
@_exported import SwiftUI

@MainActor @preconcurrency public protocol ChartContent {}
@resultBuilder public struct ChartContentBuilder {
    public static func buildBlock<Content: ChartContent>(_ content: Content) -> Content { content }
}
public protocol Plottable {}
extension Double: Plottable {}
public struct PlottableValue<Value: Plottable> {
    public static func value(_ labelKey: LocalizedStringKey, _ value: Value) -> PlottableValue<Value> { declared() }
}
public struct PointMark: ChartContent {
    public init<X: Plottable, Y: Plottable>(x: PlottableValue<X>, y: PlottableValue<Y>) { declared() }
}
public struct Chart<Content>: PrimitiveView {
    public init<Data: RandomAccessCollection>(_ data: Data, @ChartContentBuilder content: @escaping (Data.Element) -> Content)
    where Data.Element: Identifiable, Content: ChartContent { declared() }
}
extension View {
    public func chartXAxisLabel(_ labelKey: LocalizedStringKey) -> some View { self }
    public func chartYAxisLabel(_ labelKey: LocalizedStringKey) -> some View { self }
}
