import Foundation
import MobileCLIPCore
import Observation

/// The index of the photo library and its search, as a screen shows them.
@MainActor
@Observable
public final class PhotoSearch {
    private static let top = 60

    public private(set) var progress = IndexingProgress()
    public private(set) var isIndexing = false
    public private(set) var results: [LibraryPhoto] = []
    /// Photos in the index.
    public private(set) var indexed = 0
    /// What went wrong or has to be known; empty if nothing.
    public private(set) var problem = ""
    /// Whether the index cannot be used, and deleting it helps.
    public private(set) var isDamaged = false

    private let library: any PhotoLibrary
    private let folder: URL
    private let hold: @Sendable () -> String?
    private var index: EmbeddingIndex?
    private var space = ""
    private var job: Task<Void, Never>?
    private var goesOn = false

    /// - Parameters:
    ///   - folder: of all indexes, one for each embedding space
    ///   - hold: see `IndexingJob`
    public init(library: any PhotoLibrary, folder: URL, hold: @escaping @Sendable () -> String? = { nil }) {
        self.library = library
        self.folder = folder
        self.hold = hold
    }

    /// Open the index of a bundle's embedding space, unless it is open.
    public func open(_ manifest: Manifest) async {
        guard index == nil || space != manifest.embeddingSpace else { return }
        stop()
        (index, space) = (nil, manifest.embeddingSpace)
        await job?.value
        guard isWanted(manifest) else { return }
        (results, problem, isDamaged, indexed) = ([], "", false, 0)
        do {
            let opened = try await PhotoSearch.opened(place(manifest), manifest)
            guard isWanted(manifest) else { return }
            indexed = await opened.count
            index = opened
        } catch {
            problem = explanation(of: error)
            isDamaged = true
        }
    }

    /// Whether an index is still to be opened: meanwhile another one may have been asked for, or this one opened.
    private func isWanted(_ manifest: Manifest) -> Bool { index == nil && space == manifest.embeddingSpace }

    private nonisolated static func opened(_ folder: URL, _ manifest: Manifest) async throws -> EmbeddingIndex {
        let index = try EmbeddingIndex(folder: folder, embeddingSpace: manifest.embeddingSpace, width: manifest.embedDim)
        var values = URLResourceValues()
        values.isExcludedFromBackup = true // it can be made again
        var place = folder
        try? place.setResourceValues(values)
        return index
    }

    private func place(_ manifest: Manifest) -> URL { folder.appendingPathComponent("index-\(manifest.embeddingSpace.prefix(16))") }

    /// Delete the index and begin an empty one.
    public func deleteIndex(_ manifest: Manifest) async {
        stop()
        await job?.value
        index = nil
        try? FileManager.default.removeItem(at: place(manifest))
        await open(manifest)
    }

    /// Bring the index up to date, in a task of its own.
    public func start(_ service: EncoderService) {
        guard !isIndexing, let index, space == service.bundle.manifest.embeddingSpace else { return }
        (isIndexing, goesOn, problem) = (true, false, "")
        let side = service.bundle.manifest.preprocess.resolution
        let indexing = IndexingJob(library: library, index: index, shortestSide: side, embed: { try await service.embed($0) }, hold: hold)
        job = Task {
            do {
                progress = try await indexing.run { [weak self] in await self?.show($0) }
                if progress.skipped > 0 { problem = "\(progress.skipped) photos are not on this phone or cannot be decoded; the next update tries them again" }
            } catch is CancellationError {
                // whoever stopped it knows why
            } catch {
                problem = explanation(of: error)
            }
            indexed = await index.count
            isIndexing = false
        }
    }

    private func show(_ progress: IndexingProgress) { self.progress = progress }

    /// - Parameter reason: for the user, where it was not the user
    public func stop(_ reason: String = "") {
        goesOn = false
        guard isIndexing else { return }
        problem = reason
        job?.cancel()
    }

    /// The app goes to the background, where the system may end it at any time: end the job, with what it has written.
    public func pause() async {
        guard isIndexing else { return }
        job?.cancel()
        goesOn = true
        await job?.value
    }

    /// The app is back: go on where `pause` has ended a job.
    public func resume(_ service: EncoderService) async {
        guard goesOn else { return }
        await job?.value
        if goesOn { start(service) }
    }

    /// Wait until no job runs.
    func finished() async { await job?.value }

    public func search(_ text: String, _ service: EncoderService) async {
        guard let index, space == service.bundle.manifest.embeddingSpace, !text.trimmingCharacters(in: .whitespaces).isEmpty else {
            results = []
            return
        }
        do {
            let matches = try await index.search(await service.embed(text), top: PhotoSearch.top)
            results = matches.compactMap { LibraryPhoto(key: $0.id) }
        } catch is CancellationError {
            return
        } catch {
            problem = explanation(of: error)
        }
    }
}
