package org.mobileclip.app

import java.io.File
import kotlin.test.AfterTest
import kotlin.test.Test
import kotlin.test.assertEquals
import kotlin.test.assertFailsWith
import kotlin.test.assertFalse
import kotlin.test.assertIs
import kotlin.test.assertNotNull
import kotlin.test.assertNull
import kotlin.test.assertTrue
import kotlinx.coroutines.runBlocking
import org.mobileclip.app.state.AppState
import org.mobileclip.app.state.ModelState
import org.mobileclip.core.MobileClipException
import org.mobileclip.core.Photo
import org.mobileclip.core.PhotoAccess
import org.mobileclip.core.Settings
import org.mobileclip.core.Target
import org.mobileclip.core.Tower

/** What the app does, with the real model, without Android. */
class AppStateTest {
    private val fixture = Fixture("app")
    private val app = fixture.app

    @AfterTest
    fun close() = fixture.close()

    private fun added() = runBlocking {
        app.model.add(fixture.bundle(), "nano").join()
        assertNull(app.model.message.value)
        assertIs<ModelState.Ready>(app.model.state.value)
    }

    private fun indexed() = runBlocking {
        app.search.accessIs(PhotoAccess.ALL)
        app.search.start()?.join()
        app.search.state.value
    }

    private fun name(photo: Photo) = fixture.library.files[photo.id.toInt()].nameWithoutExtension

    @Test
    fun aBundleIsAddedCheckedAndUsedAgainAtTheNextStart() = runBlocking {
        app.model.start().join()
        assertEquals(ModelState.None, app.model.state.value)
        val ready = added()
        assertTrue(ready.golden.reproduced, "${ready.golden}")
        assertEquals(setOf(Tower.IMAGE, Tower.TEXT), ready.golden.cosines.keys)
        val again = fixture.start()
        again.model.start().join()
        assertEquals("nano", assertIs<ModelState.Ready>(again.model.state.value).settings.bundle)
    }

    @Test
    fun aDamagedBundleIsRefusedAndTheOneInUseStays() = runBlocking {
        added()
        app.model.add(fixture.damaged("image.onnx"), "damaged").join()
        assertEquals("image.onnx is not what was exported (its sha256 differs); copy the bundle again", app.model.message.value)
        assertIs<ModelState.Ready>(app.model.state.value)
        assertEquals(listOf("nano"), app.model.bundles.value)
    }

    @Test
    fun aBundleThatWasDamagedLaterIsNotOpened() = runBlocking {
        added()
        File(fixture.folder, "files/bundles/nano/text.onnx").appendBytes(ByteArray(1))
        val again = fixture.start()
        again.model.start().join()
        assertTrue("text.onnx is not what was exported" in assertIs<ModelState.Failed>(again.model.state.value).message)
        again.model.remove("nano").join()
        again.model.choose("").join()
        assertEquals(ModelState.None, again.model.state.value)
    }

    @Test
    fun aRuntimeThatTheBundleIsNotForIsExplained() = runBlocking {
        val ready = added()
        app.model.change(ready.settings.copy(target = Target.EXECUTORCH, provider = "xnnpack")).join()
        assertTrue("has nothing for executorch" in assertIs<ModelState.Failed>(app.model.state.value).message)
        app.model.change(ready.settings).join()
        assertIs<ModelState.Ready>(app.model.state.value)
        app.model.change(ready.settings.copy(provider = "nnapi")).join()
        assertFalse('\n' in assertIs<ModelState.Failed>(app.model.state.value).message, "a library without NNAPI")
    }

    @Test
    fun picturesAreClassifiedWithTheUsersLabels() = runBlocking {
        added()
        app.model.change(app.model.settings.value.copy(labels = listOf("a pizza", "a cat", "a car"), template = "an emoji of {}")).join()
        val loads = fixture.loads
        app.classifier.frame(FolderLibrary.picture(fixture.library.files.first { it.name == "pizza.ppm" }))
        val state = app.classifier.state.value
        assertEquals("a pizza", state.guesses.first().label)
        assertEquals(1.0, state.guesses.sumOf { it.probability }, 1e-6)
        assertNotNull(state.milliseconds)
        assertEquals(loads, fixture.loads, "other labels are no reason to load the model again")
    }

    @Test
    fun photosAreFoundAndTheIndexGoesOnAfterTheAppWasKilled() = runBlocking {
        added()
        var left = 7
        fixture.library.beforeRead = { if (--left == 0) app.search.pause() }
        assertEquals(7, indexed().progress?.done)
        assertFalse(app.search.state.value.indexing)
        val again = fixture.start()
        again.model.start().join()
        again.search.accessIs(PhotoAccess.ALL)
        again.search.start()?.join()
        assertTrue(again.search.state.value.progress!!.finished)
        assertEquals(fixture.library.files.size, fixture.library.reads, "none was read twice")
        again.search.search("a slice of pizza").join()
        assertEquals("pizza", name(again.search.state.value.found!!.first().photo))
        again.search.search(" ").join()
        assertNull(again.search.state.value.found)
    }

    @Test
    fun anIndexThatIsDamagedCanBeDeletedAndIsMadeAgain() = runBlocking {
        added()
        assertTrue(indexed().progress!!.finished)
        File(fixture.folder, "files/index").listFiles()!!.single().writeBytes(ByteArray(200))
        val again = fixture.start()
        again.model.start().join()
        again.search.accessIs(PhotoAccess.ALL)
        again.search.start()?.join()
        assertTrue(again.search.state.value.damaged)
        assertTrue("delete it" in again.search.state.value.message.orEmpty())
        again.search.deleteIndex().join()
        val state = again.search.state.value
        assertFalse(state.damaged)
        assertNull(state.message)
        assertEquals(fixture.library.files.size, state.progress?.done)
    }

    @Test
    fun onlyPickedPhotosAreFoundWithPartialAccess() = runBlocking {
        added()
        indexed()
        fixture.library.complete = false
        fixture.library.shown = fixture.library.shown.take(3)
        app.search.accessIs(PhotoAccess.SOME)
        app.search.start()?.join()
        app.search.search("a pizza").join()
        assertEquals(fixture.library.shown.toSet(), app.search.state.value.found!!.map { it.photo }.toSet())
    }

    @Test
    fun withoutAccessOrModelNothingIsIndexed() = runBlocking {
        app.search.accessIs(PhotoAccess.NONE)
        assertNull(app.search.start())
        app.search.accessIs(PhotoAccess.ALL)
        app.search.start()?.join()
        assertEquals("no model is ready; see Settings", app.search.state.value.message)
        app.search.search("a pizza").join()
        assertEquals("no model is ready; see Settings", app.search.state.value.message)
    }

    @Test
    fun lowMemoryPausesTheIndexingAndGivesTheModelBack() = runBlocking {
        added()
        var trimmed = false
        fixture.library.beforeRead = { if (!trimmed) app.trim().also { trimmed = true } }
        val state = indexed()
        assertFalse(state.indexing)
        assertEquals(1, state.progress?.done)
        assertTrue("low on memory" in state.message.orEmpty())
        val loads = fixture.loads
        app.search.start()?.join()
        assertTrue(app.search.state.value.progress!!.finished, "and goes on when it is asked to")
        assertTrue(fixture.loads > loads - 1)
        assertEquals(listOf(false, true, true, false, true), listOf(5, 10, 15, 20, 40).map(AppState::asksForMemory))
    }

    @Test
    fun lowMemoryWhileAModelIsOpenedGivesItBackToo() = runBlocking {
        fixture.beforeLoad = { Thread { app.trim() }.apply { start() }.join() }
        added()
        fixture.beforeLoad = {}
        val loads = fixture.loads
        repeat(2) { app.model.use { it.embed("a pizza") } }
        assertEquals(loads + 1, fixture.loads, "it is loaded again when it is needed, once")
    }

    @Test
    fun whatTookTheAppDownIsNotOpenedAgainByItself() = runBlocking<Unit> {
        added()
        File(fixture.folder, "files/settings.json.opening").createNewFile() // as a driver that crashes leaves it
        val again = fixture.start()
        again.model.start().join()
        assertTrue("the app ended while it opened nano with cpu" in assertIs<ModelState.Failed>(again.model.state.value).message)
        again.model.choose("nano").join()
        assertIs<ModelState.Ready>(again.model.state.value)
        val third = fixture.start()
        third.model.start().join()
        assertIs<ModelState.Ready>(third.model.state.value)
    }

    @Test
    fun aRuntimeThatBreaksInAnUnknownWayDoesNotEndTheApp() = runBlocking {
        fixture.beforeLoad = { throw IllegalStateException("a bug") }
        app.model.add(fixture.bundle(), "nano").join()
        assertTrue("cannot be used (a bug)" in assertIs<ModelState.Failed>(app.model.state.value).message)
    }

    @Test
    fun photosThatWereNotAllowedHaveAWayOut() = runBlocking {
        app.search.accessIs(PhotoAccess.NONE)
        app.search.accessAnswered()
        assertTrue("allow them in the system's settings" in app.search.state.value.message.orEmpty())
        app.search.accessIs(PhotoAccess.SOME)
        app.search.accessAnswered()
        assertNull(app.search.state.value.message)
    }

    @Test
    fun aModelThatDoesNotFitIntoMemoryIsExplained() = runBlocking {
        added()
        val error = assertFailsWith<MobileClipException> { app.model.use<Unit> { throw OutOfMemoryError() } }
        assertTrue("out of memory" in error.message.orEmpty())
        app.search.search("a pizza").join()
        assertNull(app.search.state.value.message, "it is loaded again")
    }

    @Test
    fun searchingDoesNotWaitForTheIndexing() = runBlocking {
        added()
        var found: Int? = null
        fixture.library.beforeRead = { id ->
            if (id == 9L) { // in the middle of it
                runBlocking { app.search.search("a pizza").join() }
                found = app.search.state.value.found?.size
            }
        }
        assertTrue(indexed().progress!!.finished)
        assertEquals(9, found)
    }

    @Test
    fun theModelIsTimedAndCanBeStopped() = runBlocking {
        added()
        app.startBenchmark(listOf("cpu", "nnapi"))?.join()
        val state = app.benchmark.state.value
        assertEquals(listOf(Tower.IMAGE, Tower.TEXT, Tower.IMAGE, Tower.TEXT), state.results.map { it.task.tower })
        val (timed, failed) = state.results.partition { it.error == null }
        assertEquals(listOf("cpu", "cpu"), timed.map { it.task.provider })
        for (result in timed) {
            assertTrue(result.latencyMs.size >= 50 && result.p50 <= result.p90 && "onnxruntime" in result.engine, "$result")
        }
        assertTrue(failed.all { it.latencyMs.isEmpty() && '\n' !in it.error!! }, "$failed")
        app.startBenchmark(listOf("cpu"))
        app.benchmark.stop()
        while (app.benchmark.state.value.running) Thread.sleep(10)
        assertTrue(app.benchmark.state.value.results.all { it.error == "it was stopped" })
        assertEquals(emptyList(), File(fixture.folder, "cache").list().orEmpty().toList(), "nothing is left")
    }

    @Test
    fun settingsOutliveTheApp() = runBlocking {
        app.model.change(Settings(labels = listOf("x"), threads = 2)).join()
        assertEquals(Settings(labels = listOf("x"), threads = 2), fixture.start().model.settings.value)
    }
}
