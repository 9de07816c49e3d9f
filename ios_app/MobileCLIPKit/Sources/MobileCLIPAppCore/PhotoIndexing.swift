import Foundation
import MobileCLIPCore

/// A photo of the library.
public struct LibraryPhoto: Hashable, Sendable {
    public let id: String
    /// Seconds since 1970; another one means that the photo was edited.
    public let modified: Int

    public init(id: String, modified: Int) {
        self.id = id
        self.modified = modified
    }

    /// Its id in the index: an edited photo has another one.
    public var key: String { "\(modified) \(id)" }

    public init?(key: String) {
        let parts = key.split(separator: " ", maxSplits: 1)
        guard parts.count == 2, let modified = Int(parts[0]) else { return nil }
        self.init(id: String(parts[1]), modified: modified)
    }
}

/// The photos that the user lets the app see.
public protocol PhotoLibrary: Sendable {
    /// All of them, in the order in which they shall be indexed.
    func photos() async throws -> [LibraryPhoto]

    /// A photo, upright, whose shortest side is not much shorter than asked; nil where it cannot be had now.
    func picture(_ photo: LibraryPhoto, shortestSide: Int) async -> Picture?
}

public struct IndexingProgress: Equatable, Sendable {
    public var done = 0
    public var total = 0
    /// Photos that could not be read; the next run tries them again.
    public var skipped = 0
    /// Why it waits; empty while it works.
    public var waiting = ""

    public init(done: Int = 0, total: Int = 0, skipped: Int = 0, waiting: String = "") {
        self.done = done
        self.total = total
        self.skipped = skipped
        self.waiting = waiting
    }

    public var fraction: Double { total == 0 ? 1 : Double(done) / Double(total) }
}

/// Brings an index up to date with the library: forgets what is gone or edited, adds what is missing. Run again after an interruption it
/// goes on; one photo at a time is in memory.
public struct IndexingJob: Sendable {
    private static let failuresInARow = 5
    private static let progressEvery = 8
    private static let waitSeconds = 2.0

    private let library: any PhotoLibrary
    private let index: EmbeddingIndex
    private let shortestSide: Int
    private let embed: @Sendable (Picture) async throws -> [Float]
    private let hold: @Sendable () -> String?
    private let sleep: @Sendable (Double) async throws -> Void

    /// - Parameters:
    ///   - shortestSide: of the pictures that `embed` needs
    ///   - hold: why it shall wait now, a phone that is hot for example; nil where it may work
    ///   - sleep: seconds
    public init(
        library: any PhotoLibrary, index: EmbeddingIndex, shortestSide: Int, embed: @escaping @Sendable (Picture) async throws -> [Float],
        hold: @escaping @Sendable () -> String? = { nil },
        sleep: @escaping @Sendable (Double) async throws -> Void = { try await Task.sleep(nanoseconds: UInt64($0 * 1e9)) }
    ) {
        self.library = library
        self.index = index
        self.shortestSide = shortestSide
        self.embed = embed
        self.hold = hold
        self.sleep = sleep
    }

    /// - Parameter progress: told every few photos
    /// - Throws: `CancellationError` where the task was cancelled, `MobileCLIPError` where it cannot go on; what was indexed is kept
    public func run(progress: @Sendable (IndexingProgress) async -> Void) async throws -> IndexingProgress {
        let photos = try await library.photos()
        let known = await index.ids
        let wanted = Set(photos.map(\.key))
        for key in known.subtracting(wanted) { await index.remove(key) }
        let missing = photos.filter { !known.contains($0.key) }
        var state = IndexingProgress(done: photos.count - missing.count, total: photos.count)
        await progress(state)
        do {
            try await add(missing, &state, progress)
        } catch {
            try? await index.save() // the first error counts
            throw error
        }
        try await index.save()
        try await index.compact()
        await progress(state)
        return state
    }

    private func add(_ missing: [LibraryPhoto], _ state: inout IndexingProgress, _ progress: @Sendable (IndexingProgress) async -> Void) async throws {
        var failures = 0
        for (number, photo) in missing.enumerated() {
            try await waitUntilAllowed(&state, progress)
            if let picture = await library.picture(photo, shortestSide: shortestSide) {
                let embedding: [Float]?
                do {
                    embedding = try await embed(picture)
                    failures = 0
                } catch is CancellationError {
                    throw CancellationError()
                } catch {
                    failures += 1 // one photo may be odd, many are not
                    if failures == IndexingJob.failuresInARow { throw error }
                    embedding = nil
                }
                if let embedding { try await index.put(photo.key, embedding) } else { state.skipped += 1 }
            } else {
                state.skipped += 1
            }
            state.done += 1
            if number % IndexingJob.progressEvery == 0 { await progress(state) }
        }
    }

    private func waitUntilAllowed(_ state: inout IndexingProgress, _ progress: @Sendable (IndexingProgress) async -> Void) async throws {
        try Task.checkCancellation()
        while let reason = hold() {
            state.waiting = reason
            await progress(state)
            try await sleep(IndexingJob.waitSeconds)
            try Task.checkCancellation()
        }
        state.waiting = ""
    }
}
